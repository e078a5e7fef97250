"""The command that shows what a build printed: logs."""

from __future__ import annotations

from typing import Annotated

import typer

from pipelines import build_logs
from pipelines.cli.common import AsJson, artifact_names, command_group, open_store, print_json

app = command_group()


@app.command()
def logs(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN|ARTIFACT|RECIPE",
            help="the id of a Dagster or MLflow run, or its start; recipe/stage; the start of a "
            "fingerprint; a recipe, whose newest run is meant",
            autocompletion=artifact_names,
        ),
    ],
    follow: Annotated[
        bool,
        typer.Option(
            "--follow", "-f", help="go on with what is printed from now on, until it ends"
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """What a build printed: its messages and what each rank wrote to stdout and stderr. Of a
    Dagster run: of everything that it built, unfinished builds too, and why it failed.
    """
    if follow and as_json:
        raise typer.BadParameter("--follow prints lines: leave --json out", param_hint="--follow")
    logs_of_run = build_logs.Logs(open_store(), run)
    if as_json:
        print_json([build_logs.as_values(log) for log in logs_of_run.builds()])
        return
    for line in logs_of_run.lines(follow=follow):
        typer.echo(line)
