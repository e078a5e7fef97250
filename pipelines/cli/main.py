"""The command line, `gpt-lineage`: what each command takes and prints. What it does is in the
modules beside this one.

Exit status: 0 only when what was asked is there; 1 with sentences on stderr where a person can act;
2 for a wrong command line; 130 when interrupted. Results go to stdout, progress to stderr.
Everything heavy (Dagster, MLflow, torch) is imported inside the command that needs it, so that
reading the store is quick.
"""

from __future__ import annotations

import itertools
import json
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from assets.contract import Artifact
from assets.recipe.profile import Profile, load_profile
from assets.store.store import Store
from gpt_model.errors import Unreachable, UserError
from gpt_model.memory import peak_resident_bytes

if TYPE_CHECKING:
    from assets.recipe.recipe import Recipe

MLFLOW_RUN = re.compile(r"[0-9a-f]{32}")


class Group(TyperGroup):
    """Says a UserError as its sentences on stderr, without a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except UserError as error:
            typer.echo(str(error), err=True)
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
    help="Rebuild the GPT family from raw text to evaluated model, and walk any score back to the bytes it came from. "
    "RECIPE is a name under recipes/ or a YAML file; ARTIFACT is recipe/stage or the start of a fingerprint.",
)

RecipeName = Annotated[
    str, typer.Argument(metavar="RECIPE", help="a name under recipes/, or a path to a YAML file")
]
ArtifactName = Annotated[
    str, typer.Argument(metavar="ARTIFACT", help="recipe/stage, or the start of a fingerprint")
]
ProfileName = Annotated[
    str,
    typer.Option(
        "--profile",
        envvar="LINEAGE_PROFILE",
        help="a name under profiles/, or a path to a YAML file",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="as JSON, for scripts")]


def _store() -> Store:
    return Store(Store.default_home())


def _print(thing: Any) -> None:
    """A table or tree on stdout; not cut to 80 columns where stdout is a file or pipe."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 400
    console.print(thing, soft_wrap=isinstance(thing, str))


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=1, ensure_ascii=False))


def _ready(
    recipe: str, profile: str, hub_may_be_silent: bool = False
) -> tuple[Recipe, Path, Profile]:
    """Recipe, its file, profile. What can be known to be wrong is said here: before anything heavy
    is imported, let alone built.
    """
    from assets.graph import check, nodes
    from assets.recipe.recipe import RECIPES, load_recipe
    from assets.recipe.yaml_file import find_file, naming
    from assets.stages.pretraining import PRETRAINED, check_shared_out

    path = find_file(recipe, RECIPES, "recipe")
    loaded, execution = load_recipe(str(path)), load_profile(profile)
    graph = nodes(loaded)
    check(graph, path.parent, passing=(Unreachable,) if hub_may_be_silent else ())
    with naming(loaded.files):
        for config in (node.settings(path.parent) for node in graph if node.stage is PRETRAINED):
            if "model" in config:  # an imported model's context is known once it is here
                check_shared_out(
                    config["pretraining"],
                    config["model"]["context"],
                    execution.name,
                    execution.processes,
                )
    return loaded, path, execution


@app.command()
def run(recipe: RecipeName, profile: ProfileName = "cpu", as_json: AsJson = False) -> None:
    """Build a recipe, or find it built; prints the scorecard's headline."""
    from pipelines.cli.scorecard_view import announce, as_values
    from pipelines.progress import BuildDisplay, duration, human

    began = time.monotonic()
    store = _store()
    loaded, path, _ = _ready(recipe, profile)
    with BuildDisplay(store.home, Console(stderr=True)) as display:
        from pipelines.definitions import RecipeFile
        from pipelines.runs import run_recipe

        report = run_recipe(RecipeFile(loaded, path), profile, store.home, display)
    if report.interrupted:
        typer.echo(
            "Interrupted. What was built is kept; the same command goes on from there.", err=True
        )
        raise typer.Exit(130)
    outcome = {
        "recipe": loaded.name,
        "dagster_run": report.run_id,
        "found": report.found,
        "built": report.built,
    }
    if not report.succeeded:
        words = [*report.failures, *report.failed_checks] or ["The run failed."]
        if as_json:
            _print_json({**outcome, "succeeded": False, "failures": words})
        raise UserError(
            "\n".join([*words, f"Dagster run {report.run_id} (make ui) has the whole story."])
        )
    taken = f"{duration(time.monotonic() - began)}, this process with Dagster and MLflow {human(peak_resident_bytes())}B at its peak"
    typer.echo(
        f"{report.found} found, {report.built} built in {taken}. Dagster run {report.run_id}",
        err=True,
    )
    if as_json:
        _print_json({**outcome, "succeeded": True, **as_values(store, loaded.name)})
    else:
        announce(store, loaded.name, _print)


@app.command()
def plan(recipe: RecipeName, profile: ProfileName = "cpu", as_json: AsJson = False) -> None:
    """Parameters, tokens, FLOPs, memory, time, disk and cost of a recipe, and what of it is built
    already; runs nothing.
    """
    from pipelines.cli import plan as plans

    store = _store()
    loaded, path, execution = _ready(recipe, profile, hub_may_be_silent=True)
    facts = plans.plan(loaded, path.parent, execution, store)
    if as_json:
        _print_json(facts)
    else:
        _print(plans.draw_plan(facts))


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """Every artifact in the store, by name."""
    from pipelines import lineage_views

    store = _store()
    rows = lineage_views.listed(store)
    if as_json:
        _print_json(rows)
    elif rows:
        _print(lineage_views.draw_list(rows))
    else:
        typer.echo(f"There is nothing in {store.home} yet. Build a recipe: gpt-lineage run tiny")


@app.command()
def show(artifact: ArtifactName, as_json: AsJson = False) -> None:
    """One artifact: its inputs, configuration, checks, metrics, files and where it was built."""
    from pipelines import lineage_views

    store = _store()
    facts = lineage_views.shown(store, store.resolve(artifact))
    if as_json:
        _print_json(facts)
    else:
        _print(lineage_views.draw_artifact(facts))


@app.command()
def trace(
    artifact: Annotated[
        str,
        typer.Argument(
            metavar="ARTIFACT|MLFLOW_RUN",
            help="recipe/stage, the start of a fingerprint, or an MLflow run id",
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Where an artifact comes from: its whole lineage back to the sources. Exit status 1 where a
    part of it is gone.
    """
    from assets.report import lineage_tree

    store = _store()
    lineage = lineage_tree.traced(store, _artifact_or_run(store, artifact))
    if as_json:
        _print_json(lineage)
    else:
        _print(lineage_tree.draw_lineage(lineage))
    if not lineage_tree.is_complete(lineage):
        raise UserError("A part of this lineage is not in the store any more.")


def _artifact_or_run(store: Store, text: str) -> Artifact:
    """The artifact `text` names, or the one that the MLflow run `text` built."""
    if MLFLOW_RUN.fullmatch(text):
        from assets.tracking.tracking import Tracking

        tracking = Tracking(store.home)
        if built := next(
            (artifact for artifact in store.artifacts() if tracking.run_of(artifact) == text), None
        ):
            return built
    return store.resolve(text)


@app.command()
def verify(
    artifact: Annotated[
        str | None, typer.Argument(metavar="[ARTIFACT]", help="default: everything in the store")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Recompute every checksum along an artifact's lineage, or of the whole store. Exit status 1
    names what is not as published.
    """
    from pipelines.verification import verified

    store = _store()
    checked, problems = verified(
        store, store.resolve(artifact) if artifact else None, Console(stderr=True)
    )
    if as_json:
        _print_json({"artifacts": checked, "problems": problems})
    if problems:
        raise UserError("\n".join(problems))
    if not as_json:
        typer.echo(
            f"{checked} artifact{'s verify' if checked != 1 else ' verifies'}: every file is as it was published."
        )


@app.command()
def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="an artifact")],
    b: Annotated[str, typer.Argument(metavar="B", help="another")],
    as_json: AsJson = False,
) -> None:
    """Which inputs, fields, metrics and files of two artifacts differ, and where their lineages
    part.
    """
    from pipelines import lineage_views

    store = _store()
    found = lineage_views.differences(store, store.resolve(a), store.resolve(b))
    if as_json:
        _print_json(found)
    else:
        _print(lineage_views.draw_differences(found))


@app.command()
def reproduce(artifact: ArtifactName, as_json: AsJson = False) -> None:
    """Build an artifact again from its manifest and compare, file by file. Exit status 1 where a
    file differs.
    """
    from pipelines.reproduction import reproduced

    store = _store()
    original = store.resolve(artifact)
    unlike = reproduced(store, original, Console(stderr=True))
    if as_json:
        identity = {
            "stage": original.stage,
            "fingerprint": original.fingerprint,
            "digest": original.digest,
        }
        _print_json({**identity, "same": not unlike, "differences": unlike})
    if unlike:
        raise UserError(
            "\n".join(
                [
                    f"{original.stage} {original.fingerprint[:12]} was built again, and it is not the same:",
                    *unlike,
                ]
            )
        )
    if not as_json:
        typer.echo(
            f"The same, byte for byte: {len(original.manifest['files'])} files, digest {original.digest}"
        )


@app.command()
def generate(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="an artifact with a model in it, e.g. tiny/pretrained"
        ),
    ],
    prompt: Annotated[str, typer.Argument(help="what to go on from; empty begins a new document")],
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 128,
    temperature: Annotated[
        float, typer.Option(min=0.0, help="0 takes the likeliest token each time")
    ] = 1.0,
    top_k: Annotated[int | None, typer.Option(min=1)] = None,
    top_p: Annotated[float | None, typer.Option(min=0.0, max=1.0)] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    samples: Annotated[int, typer.Option(min=1)] = 1,
) -> None:
    """Write text with a model."""
    from pipelines import models

    if top_p == 0.0:
        raise typer.BadParameter("top-p is above 0", param_hint="--top-p")
    store = _store()
    folder = models.model_folder(store, store.resolve(model))
    written = itertools.count(1)
    with Console(stderr=True).status("writing") as status:
        texts = models.generate(
            folder,
            prompt,
            lambda *_: status.update(
                f"writing: token {next(written)} of at most {samples * max_new_tokens}"
            ),
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            samples=samples,
        )
    for number, text in enumerate(texts):
        if number:
            typer.echo("---")
        typer.echo(prompt + text)


@app.command()
def chat(
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="an artifact to talk with, e.g. chat_tiny/supervised"),
    ] = None,
    model2: Annotated[
        str | None,
        typer.Argument(metavar="MODEL2", help="another, which answers beside it, to vote between"),
    ] = None,
    browser: Annotated[
        bool,
        typer.Option(
            "--browser", help="a page, and an OpenAI-compatible endpoint, on this machine only"
        ),
    ] = False,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token each time")] = 0.7,
    top_p: Annotated[float, typer.Option()] = 1.0,
    top_k: Annotated[int, typer.Option(help="0: all")] = 0,
    max_new_tokens: Annotated[int, typer.Option(help="of an answer")] = 256,
    seed: Annotated[int, typer.Option()] = 0,
    system: Annotated[str, typer.Option(help="what the model is told before the talk")] = "",
    port: Annotated[int, typer.Option(min=1, max=65535, help="the page's")] = 7860,
    endpoint_port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    votes: Annotated[
        bool, typer.Option("--votes", help="only say how many votes are kept")
    ] = False,
) -> None:
    """Talk with a model that was tuned to answer, in the terminal or (--browser) on a page."""
    from pipelines.chat import session

    store = _store()
    if votes:
        typer.echo(session.votes_summary(store.home))
        return
    if model is None:
        raise typer.BadParameter(
            "which model? Give an artifact, e.g. chat_tiny/supervised", param_hint="MODEL"
        )
    sampling = session.Sampling(temperature, top_p, top_k, max_new_tokens, seed)
    partners = session.find_partners(store, [name for name in (model, model2) if name])
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
    from pipelines import models
    from pipelines.progress import BuildDisplay

    store = _store()
    with BuildDisplay(store.home, Console(stderr=True)) as display:
        ref, outcome = models.imported(
            store, model, revision, licence, name, load_profile(profile), display
        )
    artifact = outcome.artifact
    if failed := [
        f"{check}: {verdict.summary}"
        for check, verdict in outcome.verdicts.items()
        if not verdict.passed
    ]:
        raise UserError("\n".join(failed))
    if as_json:
        _print_json(
            {
                "ref": ref,
                "fingerprint": artifact.fingerprint,
                "digest": artifact.digest,
                "found": outcome.hit,
            }
        )
    else:
        how = "found" if outcome.hit else "imported"
        size = f"{artifact.metrics['parameters']:,.0f} parameters"
        typer.echo(f"{ref} {artifact.fingerprint[:12]} {how}, {size}. See: gpt-lineage show {ref}")


@app.command()
def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="an artifact with a model in it")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="where the model goes")],
    force: Annotated[bool, typer.Option("--force", help="replace what is in DIR")] = False,
) -> None:
    """Copy a model to a folder that `transformers` loads."""
    from pipelines import models

    store = _store()
    target = models.export(store, store.resolve(model), folder.expanduser(), replace=force)
    typer.echo(
        f"{target} is ready: transformers.AutoModelForCausalLM.from_pretrained({str(target)!r})"
    )
    if (target / models.HEAD).is_file():
        typer.echo(
            f"That is the fine-tuned decoder alone: transformers leaves out the task's head, which is in {models.HEAD} beside it. "
            f"gpt_model.finetuning.heads.load(pathlib.Path({str(target)!r})) reads both."
        )


@app.command()
def ui(port: Annotated[int, typer.Option(min=1, max=65535)] = 3000) -> None:
    """Dagster's pages over this store, until Ctrl-C."""
    from pipelines.cli.servers import serve_dagster

    serve_dagster(port)


@app.command()
def mlflow(port: Annotated[int, typer.Option(min=1, max=65535)] = 5000) -> None:
    """MLflow's pages over this store, until Ctrl-C."""
    from pipelines.cli.servers import serve_mlflow

    serve_mlflow(port)


def main() -> None:
    """The console script."""
    app(prog_name="gpt-lineage")


if __name__ == "__main__":
    main()
