"""What processes that carry guards for a cluster have in common (`ray_carrier.py`,
`kubernetes_carrier.py`): their lines on standard output, and the one that says why no guard starts.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from typing import Any


class Refused(Exception):
    """A sentence, and the field of the profile that it is about."""

    def __init__(self, sentence: str, field: str) -> None:
        super().__init__(sentence)
        self.field = field

    def send(self) -> None:
        send({"refused": str(self), "field": self.field})


def not_here(command: str, by: str) -> str:
    return (
        f"{command} is not on this machine, and the profile's hosts are reached by it "
        f"(`by: {by}`). Install it, or build where it is."
    )


def send(message: Mapping[str, Any]) -> None:
    pass_on(json.dumps(message).encode() + b"\n")


def pass_on(lines: bytes) -> None:
    with suppress(OSError):  # nobody may be left to hear it
        os.write(1, lines)
