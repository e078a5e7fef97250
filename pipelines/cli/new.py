"""The command that writes a first recipe for a person's own files: new."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from gpt_model.errors import UserError, naming_path
from pipelines.cli.common import AsJson, command_group, print_json, print_rich, recipe_names

app = command_group()


@app.command()
def new(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="its name, or the path of the file to write")
    ],
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA",
            help="a folder of .txt or .md files, or a .csv, .tsv, .jsonl or .parquet file",
        ),
    ],
    extends: Annotated[
        str,
        typer.Option(
            "--extends",
            metavar="RECIPE",
            help="where the model and all the rest are from",
            autocompletion=recipe_names,
        ),
    ] = "tiny",
    force: Annotated[bool, typer.Option("--force", help="replace files of an earlier one")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a recipe for text or rows of your own. Says what it guessed of them (documents,
    columns, labels, header, form of task), why, and which key changes it.
    """
    # what reads rows and recipes takes half a second to import
    from pipelines.cli.recipes import checked
    from pipelines.new_recipe import draft

    target = Path(recipe if recipe.endswith((".yaml", ".yml")) else f"{recipe}.yaml").expanduser()
    drafted = draft(target, data.expanduser(), extends)
    for path in drafted.files:
        if path.exists() and not force:
            raise UserError(
                f"{path} is there already. Give another name, or --force to replace it."
            )
    for path, text in drafted.files.items():
        with naming_path(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    checked(str(target.absolute()), "cpu")
    if as_json:
        guesses = [asdict(guess) for guess in drafted.guesses]
        print_json({"files": [str(path) for path in drafted.files], "guesses": guesses})
        return
    typer.echo(f"{' and '.join(map(str, drafted.files))}: extends {extends}. What was guessed:\n")
    table = Table("key", "guess", "why", box=None, pad_edge=False)
    for guess in drafted.guesses:
        table.add_row(*map(escape, (guess.key, guess.value, guess.reason)))
    print_rich(table)
    typer.echo(
        f"\nEdit a key to change a guess. Then:\n"
        f"  gpt-lineage plan {target}     # what building it takes\n"
        f"  gpt-lineage run {target}"
    )
