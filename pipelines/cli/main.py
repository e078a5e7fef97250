"""The command line, `gpt-lineage`. Each group of commands has a module beside this one.

Exit status: 0 only when the request succeeded; 1 with sentences on stderr where a person can act; 2
for a wrong command line; 130 when interrupted.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import io
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_group

from assets.store.manifest import explain_full_disk
from assets.store.store import SHORT, Store
from gpt_model.errors import UserError, sentence_of
from gpt_model.redaction import RedactedStream

# Commands, as --help lists them: by what a person wants, each with the module that has it. These
# modules import nothing heavy at their top: --help and shell completion read all of them.
SECTIONS = {
    "Build": {"new": "new", "plan": "build", "run": "build", "logs": "logs"},
    "Look into the store": {
        "list": "store",
        "show": "store",
        "trace": "store",
        "diff": "store",
        "verify": "store",
        "reproduce": "store",
    },
    "Use a model": {
        "generate": "models",
        "chat": "models",
        "import": "models",
        "export": "models",
        "push": "models",
    },
    "Keep the store": {
        "where": "upkeep",
        "du": "upkeep",
        "pin": "upkeep",
        "unpin": "upkeep",
        "prune": "upkeep",
        "rm": "upkeep",
        "deliver": "store",
    },
    "Pages": {"ui": "servers", "mlflow": "servers"},
}
MODULES = {name: module for commands in SECTIONS.values() for name, module in commands.items()}

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

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """The commands of --help, a section for each kind."""
        width = max(map(len, MODULES))
        for section, names in SECTIONS.items():
            with formatter.section(section):
                rows = [
                    (f"{name:<{width}}", _first_sentence(self.commands[name])) for name in names
                ]
                formatter.write_dl(rows)

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


def _first_sentence(command: Any) -> str:
    return " ".join(command.help.split()).partition(". ")[0].removesuffix(".")


def _print_version(wanted: bool) -> None:
    if not wanted:
        return
    from assets.store.provenance import git_state  # no other command waits for it

    state = git_state()
    changes = ", with changes" if state["dirty"] else ""
    commit = f" (commit {state['commit'][:SHORT]}{changes})" if state["commit"] else ""
    typer.echo(f"gpt-lineage {metadata.version('gpt-lineage')}{commit}")
    raise typer.Exit


app = typer.Typer(
    cls=Group, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None
)


@app.callback()
def gpt_lineage(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="The version, and its commit."
        ),
    ] = False,
) -> None:
    """Rebuild the GPT family from raw text to evaluated model, and walk any score back to the bytes
    it came from. RECIPE is a name under recipes/ or a YAML file; ARTIFACT is recipe/stage or the
    start of a fingerprint.
    """


def main() -> None:
    """The console script."""
    # Most objects of a command are modules and definitions, which stay: looking for garbage among
    # them takes a sixth of its processor time.
    gc.set_threshold(GARBAGE_THRESHOLD)
    atexit.register(gc.freeze)  # nor among all of them once more at the end: a fifth of it
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # a terminal or a locale that is no UTF-8 shows escapes for what it lacks
            stream.reconfigure(errors="backslashreplace")
    if isinstance(sys.stdin, io.TextIOWrapper):
        # what is no UTF-8 is refused where it is read as text, not here
        sys.stdin.reconfigure(errors="surrogateescape")
    sys.stderr = RedactedStream(sys.stderr)  # a library's warning, a traceback
    app(prog_name="gpt-lineage")
