"""Which launcher a profile names: this machine's, several hosts', or a job that outlives us."""

from __future__ import annotations

from assets.launch.detached import DetachedLauncher, Tag
from assets.launch.hosts import HostsLauncher, Say
from assets.launch.launcher import Launcher, LocalLauncher
from assets.recipe.profile import Profile


def launcher_for(
    profile: Profile, say: Say = lambda message: None, tag: Tag = lambda name, value: None
) -> Launcher:
    """`say`: a sentence for a person who waits. `tag`: a name and a value, of the run."""
    hosts = profile.hosts
    if hosts is None:
        return LocalLauncher(profile.device)
    if hosts.detached:
        return DetachedLauncher(hosts, profile.device, profile.threads, say, tag)
    return HostsLauncher(hosts, profile.device, profile.threads, say)
