"""How many wildcards a glob may have: matching takes time by the power of their number."""

from __future__ import annotations

from gpt_model.errors import UserError, shortened

STARS = 4  # in a name
FOLDERS = 2  # **, of any depth


def require_few_wildcards(pattern: str) -> None:
    """Raises UserError for a glob that would keep a machine busy."""
    parts = pattern.replace("!", "/").split("/")
    folders = sum(part == "**" for part in parts)
    stars = max(part.count("*") for part in parts if part != "**") if folders < len(parts) else 0
    if folders > FOLDERS or stars > STARS:
        raise UserError(
            f"{shortened(pattern)!r} has too many wildcards to be looked up: at most {FOLDERS} "
            f"`**` and {STARS} `*` in a name. Name the files more plainly."
        )
