"""The command line, `gpt-lineage`. Each group of commands has a module beside this one.

Exit status: 0 only when the request succeeded; 1 with sentences on stderr where a person can act; 2
for a wrong command line; 130 when interrupted.
"""

from __future__ import annotations

import gc
import importlib
import io
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import typer
from typer.core import TyperGroup
from typer.main import get_group

from assets.store.manifest import explain_full_disk
from assets.store.store import Store
from gpt_model.errors import UserError, sentence_of
from gpt_model.redaction import RedactedStream

# Commands, as --help lists them, by the module that has them.
MODULES = {
    "run": "build",
    "plan": "build",
    "list": "store",
    "show": "store",
    "trace": "store",
    "verify": "store",
    "diff": "store",
    "reproduce": "store",
    "generate": "models",
    "chat": "models",
    "import": "models",
    "export": "models",
    "deliver": "store",
    "ui": "servers",
    "mlflow": "servers",
}

GARBAGE_THRESHOLD = 200_000  # new objects between two collections; Python's own: 700


class Commands(Mapping[str, Any]):
    """The commands by name. Looking one up imports its module, so that no command waits for the
    imports of another.
    """

    def __getitem__(self, name: str) -> Any:
        module = importlib.import_module(f"{__package__}.{MODULES[name]}")
        return get_group(module.app).commands[name]

    def __iter__(self) -> Iterator[str]:
        return iter(MODULES)

    def __len__(self) -> int:
        return len(MODULES)


class Group(TyperGroup):
    """Prints a UserError, and what a file system refuses, as sentences on stderr, without a
    traceback.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = Commands()  # type: ignore[assignment]  # nothing adds a command

    def invoke(self, ctx: Any) -> Any:
        try:
            with explain_full_disk(Store.default_home()):
                return super().invoke(ctx)
        except (UserError, OSError) as error:
            if (sentence := sentence_of(error)) is None:
                raise
            typer.echo(sentence, err=True)
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            typer.echo("Interrupted.", err=True)
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback()
def gpt_lineage() -> None:
    """Rebuild the GPT family from raw text to evaluated model, and walk any score back to the bytes
    it came from. RECIPE is a name under recipes/ or a YAML file; ARTIFACT is recipe/stage or the
    start of a fingerprint.
    """


def main() -> None:
    """The console script."""
    # Most objects of a command are modules and definitions, which stay: looking for garbage among
    # them takes a sixth of its processor time.
    gc.set_threshold(GARBAGE_THRESHOLD)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # a terminal or a locale that is no UTF-8 shows escapes for what it lacks
            stream.reconfigure(errors="backslashreplace")
    sys.stderr = RedactedStream(sys.stderr)  # a library's warning, a traceback
    app(prog_name="gpt-lineage")
