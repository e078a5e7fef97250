"""A Slurm job that outlives whoever submitted it: found again at the next start by what stands
beside the build's log.

The job's script runs this module on the first node, which runs the ranks with `HostsLauncher`
inside the allocation and leaves how they ended in `detached.exit.json`. Whoever waits looks at that
file and at Slurm's queue. A Terminate or Ctrl-C cancels the job; a kill -9 or a lost terminal does
not.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from assets.launch.hosts import HostsLauncher, Say, time_limit
from assets.launch.launcher import Exit, Ranks, module_command
from assets.recipe.profile import Hosts
from gpt_model.errors import UserError, shortened
from gpt_model.io import write_json

LOOK_SECONDS = 2.0  # between two looks at Slurm's queue
# States of a job that has not ended, squeue(1)
GOING_ON = ("PENDING", "CONFIGURING", "RUNNING", "SUSPENDED", "STOPPED", "RESIZING", "SIGNALING")
LATE_SECONDS = 30.0  # that a network file system may show the job's last file late
Tag = Callable[[str, str], None]


class DetachedLauncher:
    """Runs ranks as a Slurm job, and waits for it; or waits for the one an earlier start submitted.

    `tag`: hears of the job's number.
    """

    def __init__(
        self,
        hosts: Hosts,
        device: str,
        threads: int | None,
        say: Say = lambda message: None,
        tag: Tag = lambda name, value: None,
    ) -> None:
        self.hosts, self.device, self.threads = hosts, device, threads
        self.say, self.tag = say, tag

    def run(self, ranks: Ranks) -> Exit:
        """As `Launcher.run`: a Terminate or Ctrl-C cancels the job."""
        log = ranks.log
        if (job := _left(log)) is not None:
            self.say(f"Slurm's job {job} goes on from an earlier start; waiting for it")
        else:
            job = self._submit(ranks)
            self.say(f"submitted Slurm's job {job}, which goes on where this process is killed")
        self.tag("slurm_job", job)
        try:
            exit = self._wait(job, log)
        except BaseException:
            subprocess.run(["scancel", job], check=False)
            _forget(log)
            raise
        _forget(log)
        return exit

    def _submit(self, ranks: Ranks) -> str:
        log = ranks.log
        nodes = 1 if ranks.count == 1 else self.hosts.count()
        log.parent.mkdir(parents=True, exist_ok=True)
        _forget(log)
        what = {
            "command": list(ranks.command),
            "count": ranks.count,
            "threads": ranks.threads,
            "log": str(log),
            "hosts": self.hosts.model_dump(),
            "device": self.device,
            "threads_stated": self.threads,
        }
        write_json(_what(log), what)
        here = [*module_command(sys.executable, "assets.launch.detached"), str(_what(log))]
        script = f"#!/bin/sh\ncd {shlex.quote(str(Path.cwd()))} && exec {shlex.join(here)}\n"
        submit = [
            *("sbatch", "--parsable", "--no-requeue", *time_limit(self.hosts.options)),
            *self.hosts.options,
            *(f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1"),
            *(f"--output={log.with_name('slurm.log')}", "--open-mode=append", "--job-name=lineage"),
        ]
        try:
            # Its environment is the job's: what is secret in it is not written into the store.
            done = subprocess.run(
                submit,
                input=script,
                env=os.environ | dict(ranks.env),
                capture_output=True,
                text=True,
                check=False,
            )
        except FileNotFoundError:
            raise _no_slurm("sbatch") from None
        if done.returncode:
            raise UserError(
                f"Slurm refused the job: {shortened(done.stderr.strip())} Mend the profile's "
                "hosts.options.",
                field="hosts.options",
            )
        job = done.stdout.strip().partition(";")[0]
        write_json(_what(log), what | {"job": job})
        return job

    def _wait(self, job: str, log: Path) -> Exit:
        gone_since: float | None = None
        waiting = ""
        while not _exit_file(log).is_file():
            time.sleep(LOOK_SECONDS)
            state = _state(job)
            if state.startswith("PENDING") and state != waiting:
                self.say(f"Slurm's job {job} waits: {state}")
                waiting = state
            gone_since = None if state else (gone_since or time.monotonic())
            if gone_since and time.monotonic() - gone_since > LATE_SECONDS:
                lost = f"Slurm's job {job} ended without a result: see {log.with_name('slurm.log')}"
                return Exit(-signal.SIGKILL, None, 0, log, lost)
        left = json.loads(_exit_file(log).read_text(encoding="utf-8"))
        if "refused" in left:
            raise UserError(left["refused"], field=left["field"])
        return Exit(**left | {"log": Path(left["log"])})


def left_running(log: Path, say: Say, tag: Tag) -> DetachedLauncher | None:
    """What waits for the job that an earlier start left to the build with this log: one that runs,
    is in the queue, or has ended since. None where there is none.
    """
    if _left(log) is None:
        _forget(log)
        return None
    what = json.loads(_what(log).read_text(encoding="utf-8"))
    hosts = Hosts(**what["hosts"])
    return DetachedLauncher(hosts, what["device"], what["threads_stated"], say, tag)


def _left(log: Path) -> str | None:
    """The number of that job."""
    job = _job(log)
    return job if job and (_exit_file(log).is_file() or _state(job)) else None


def _no_slurm(command: str) -> UserError:
    return UserError(
        f"{command} is not on this machine, and this build is a job of Slurm's. Build where it is.",
        field="hosts.by",
    )


def _what(log: Path) -> Path:
    return log.with_name("detached.json")


def _exit_file(log: Path) -> Path:
    return log.with_name("detached.exit.json")


def _forget(log: Path) -> None:
    for path in (_what(log), _exit_file(log)):
        path.unlink(missing_ok=True)


def _job(log: Path) -> str | None:
    """The number of the job that stands beside `log`."""
    if not _what(log).is_file():
        return None
    job: str | None = json.loads(_what(log).read_text(encoding="utf-8")).get("job")
    return job


def _state(job: str) -> str:
    """The job's state, with the reason of a pending one; "" where it has ended, or no node of it is
    left to say how. Where Slurm does not answer: "unknown".
    """
    command = ["squeue", "--noheader", f"--jobs={job}", "--format=%T (%r)"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise _no_slurm("squeue") from None
    if done.returncode and "Invalid job id" not in done.stderr:
        return "unknown"
    state = done.stdout.strip()
    return state if state.startswith(GOING_ON) else ""


def main() -> None:
    """Inside the job, on its first node: runs the ranks and leaves how they ended."""
    path = Path(sys.argv[1])
    what = json.loads(path.read_text(encoding="utf-8"))
    write_json(path, what | {"job": os.environ["SLURM_JOB_ID"]})  # its submitter may be dead
    log = Path(what["log"])
    launcher = HostsLauncher(Hosts(**what["hosts"]), what["device"], what["threads_stated"])
    try:
        exit = launcher.run(Ranks(what["command"], what["count"], what["threads"], log))
    except UserError as error:
        write_json(_exit_file(log), {"refused": str(error), "field": error.field})
    else:
        write_json(_exit_file(log), asdict(exit) | {"log": str(exit.log)})


if __name__ == "__main__":
    main()
