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
            metavar="RUN|ARTIFACT",
            help="the id of a Dagster or MLflow run, or its start; recipe/stage; the start of a "
            "fingerprint",
            autocompletion=artifact_names,
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """What a build printed: its messages and what each rank wrote to stdout and stderr. Of a
    Dagster run: of everything that it built, unfinished builds too.
    """
    builds = build_logs.build_logs(open_store(), run)
    if as_json:
        print_json([build_logs.as_values(log) for log in builds])
        return
    for log in builds:
        for line in build_logs.as_lines(log):
            typer.echo(line)
