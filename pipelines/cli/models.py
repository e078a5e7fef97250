"""The commands about single models: generate, chat, import, export, push.

What they call imports Dagster and pandas, which takes seconds, for which neither --help nor shell
completion waits: each command imports it itself.
"""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from assets.recipe.profile import load_profile
from assets.store.store import SHORT
from gpt_model.errors import UserError
from pipelines.cli.common import (
    AsJson,
    ProfileName,
    artifact_names,
    command_group,
    open_store,
    open_team_store,
    print_json,
    stderr_console,
    with_files,
)
from pipelines.progress import BuildDisplay, human

Languages = Annotated[
    list[str] | None,
    typer.Option(
        "--language", help="of its text, for the card: a code such as en; may be repeated"
    ),
]

app = command_group()


@app.command()
def generate(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="an artifact with a model in it, e.g. tiny/pretrained",
            autocompletion=artifact_names,
        ),
    ],
    prompt: Annotated[str, typer.Argument(help="what to go on from; empty begins a new document")],
    max_new_tokens: Annotated[int, typer.Option(min=1, help="tokens written, at most")] = 128,
    temperature: Annotated[
        float, typer.Option(min=0.0, help="0 takes the likeliest token each time")
    ] = 1.0,
    top_k: Annotated[
        int | None, typer.Option(min=1, help="of the likeliest tokens; default: all")
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(
            min=0.0, max=1.0, help="of the fewest tokens of this probability; default: all"
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="the same seed writes the same text")] = 0,
    samples: Annotated[int, typer.Option(min=1, help="texts, each another")] = 1,
    as_json: AsJson = False,
) -> None:
    """Write text with a model. The prompt goes to stderr, what the model writes to stdout."""
    from pipelines import models

    if top_p == 0.0:
        raise typer.BadParameter("top-p is above 0", param_hint="--top-p")
    store = open_team_store()
    folder = models.model_folder(store, with_files(store, model))
    most, counter = samples * max_new_tokens, itertools.count(1)
    with stderr_console().status("writing") as status:
        texts = models.generate(
            folder,
            prompt,
            lambda *_: status.update(f"writing: token {next(counter)} of at most {most}"),
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            samples=samples,
        )
    if as_json:
        print_json({"prompt": prompt, "texts": texts})
        return
    typer.echo(typer.style(prompt, dim=True), err=True)
    for number, text in enumerate(texts):
        if number:
            typer.echo("---")
        typer.echo(text)


@app.command()
def chat(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="an artifact to talk with, e.g. chat_tiny/supervised",
            autocompletion=artifact_names,
        ),
    ] = None,
    model2: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL2",
            help="another, which answers beside it, to vote between",
            autocompletion=artifact_names,
        ),
    ] = None,
    browser: Annotated[
        bool,
        typer.Option(
            "--browser", help="a page, and an OpenAI-compatible endpoint, on this machine only"
        ),
    ] = False,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token each time")] = 0.7,
    top_p: Annotated[float, typer.Option(help="of the fewest tokens of this probability")] = 1.0,
    top_k: Annotated[int, typer.Option(help="of the likeliest tokens; 0: all")] = 0,
    max_new_tokens: Annotated[int, typer.Option(help="tokens of an answer, at most")] = 256,
    seed: Annotated[int, typer.Option(help="the same seed gives the same answers")] = 0,
    system: Annotated[str, typer.Option(help="what the model is told before the talk")] = "",
    port: Annotated[int, typer.Option(min=1, max=65535, help="the page's")] = 7860,
    endpoint_port: Annotated[int, typer.Option(min=1, max=65535, help="the endpoint's")] = 8000,
    votes: Annotated[
        bool, typer.Option("--votes", help="only say how many votes are kept")
    ] = False,
) -> None:
    """Talk with a model that was tuned to answer, in the terminal or (--browser) on a page."""
    from pipelines.chat import session

    store = open_team_store()
    if votes:
        typer.echo(session.votes_summary(store.home))
        return
    if model is None:
        raise typer.BadParameter(
            "which model? Give an artifact, e.g. chat_tiny/supervised", param_hint="MODEL"
        )
    sampling = session.Sampling(temperature, top_p, top_k, max_new_tokens, seed)
    names = [name for name in (model, model2) if name]
    for name in names:
        with_files(store, name)
    partners = session.find_partners(store, names)
    # torch takes seconds to import, which the other commands of this module need not wait for
    if browser:
        try:
            from pipelines.chat import page
        except ModuleNotFoundError as missing:  # of an extra, which not every machine has
            raise UserError(
                f"The page needs {missing.name}, not installed here: "
                "pip install 'gpt-lineage[chat]' -c constraints.txt"
            ) from None
        page.talk(store.home, partners, sampling, system, port, endpoint_port)
    else:
        from pipelines.chat import terminal

        terminal.talk(store.home, partners, sampling, system)


@app.command("import")
def import_(
    model: Annotated[
        str,
        typer.Argument(
            metavar="HUB_ID|DIR",
            help="a repository on the Hugging Face hub, or a folder laid out like one",
        ),
    ],
    revision: Annotated[
        str | None, typer.Option(help="a branch, tag or commit of HUB_ID; default: main")
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            help="what to call it: NAME/imported; default: the last part of HUB_ID or DIR"
        ),
    ] = None,
    licence: Annotated[
        str, typer.Option(help="of the weights, for the tables that say where everything is from")
    ] = "unknown",
    profile: ProfileName = "cpu",
    as_json: AsJson = False,
) -> None:
    """Bring somebody else's model into the store, as an artifact with its own lineage."""
    from pipelines.models import imported

    store, execution = open_store(), load_profile(profile)
    with BuildDisplay(store.home, stderr_console()) as display:
        ref, outcome = imported(store, model, revision, licence, name, execution, display)
    artifact, verdicts = outcome.artifact, outcome.verdicts.items()
    if failed := [f"{name}: {verdict.summary}" for name, verdict in verdicts if not verdict.passed]:
        raise UserError("\n".join(failed))
    if as_json:
        identity = {"fingerprint": artifact.fingerprint, "digest": artifact.digest}
        print_json({"ref": ref, **identity, "found": outcome.hit})
    else:
        how = "found" if outcome.hit else "imported"
        size = f"{artifact.metrics['parameters']:,.0f} parameters"
        name = f"{ref} {artifact.fingerprint[:SHORT]}"
        typer.echo(f"{name} {how}, {size}. See: gpt-lineage show {ref}")


@app.command()
def export(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="an artifact with a model in it", autocompletion=artifact_names
        ),
    ],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="where the model goes")],
    force: Annotated[bool, typer.Option("--force", help="replace an earlier export")] = False,
    languages: Languages = None,
) -> None:
    """Copy a model to a folder that `transformers` loads, with a card, licences and its lineage."""
    from pipelines import models

    store = open_team_store()
    target, task = models.export(
        store,
        with_files(store, model),
        folder.expanduser(),
        name=model,
        replace=force,
        languages=languages or (),
    )
    typer.echo(f"{target} is ready: transformers.pipeline({task!r}, model={str(target)!r})")
    if (target / models.HEAD).is_file():
        typer.echo(
            "That is the fine-tuned decoder alone: transformers leaves out the task's head, which "
            f"is in {models.HEAD} beside it. "
            f"gpt_model.finetuning.heads.load(pathlib.Path({str(target)!r})) reads both."
        )


@app.command()
def push(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="an artifact with a model in it", autocompletion=artifact_names
        ),
    ],
    hub_id: Annotated[
        str, typer.Argument(metavar="HUB_ID", help="OWNER/NAME on the Hugging Face hub")
    ],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="list the files and the card; upload nothing")
    ] = False,
    private: Annotated[
        bool, typer.Option("--private", help="if the repository is new, for its owner alone")
    ] = False,
    languages: Languages = None,
    as_json: AsJson = False,
) -> None:
    """Upload a model to the Hugging Face hub, as `export` writes it. HF_TOKEN is the token."""
    from pipelines import models

    if "/" not in hub_id or not models.HUB_ID.fullmatch(hub_id):
        raise UserError(f"{hub_id!r} is no repository of the hub: give OWNER/NAME.")
    store = open_team_store()
    artifact = with_files(store, model)
    with tempfile.TemporaryDirectory(prefix="gpt-lineage-") as scratch:
        folder, _ = models.export(
            store,
            artifact,
            Path(scratch) / "model",
            name=model,
            languages=languages or (),
            address=hub_id,
        )
        sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
        outcome: dict[str, Any] = {"hub": hub_id, "files": sizes, "pushed": None}
        if not dry_run:
            message = f"{model} {artifact.fingerprint[:SHORT]}, by gpt-lineage"
            outcome["pushed"] = models.push(folder, hub_id, message, private=private)
        card = (folder / "README.md").read_text(encoding="utf-8")
    if as_json:
        print_json({**outcome, "card": card})
    elif dry_run:
        typer.echo("\n".join(f"{human(size)}B\t{name}" for name, size in sizes.items()))
        typer.echo(f"\n{card}")
        typer.echo(f"Nothing was uploaded. Without --dry-run this goes to {hub_id}.", err=True)
    else:
        typer.echo(f"{hub_id} has {model}: {outcome['pushed']}")
