"""The one wrapper that makes a stage a Dagster asset: build or find its artifact, and show it.

Dagster concepts: a software-defined asset with asset checks, `DataVersion` = digest, Pipes for the
worker's live messages. `build.py` has the build itself, without Dagster. Annotations are not
postponed in here: Dagster reads them.
"""

import base64
import json
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg
from dagster._core.errors import DagsterExecutionInterruptedError

from assets.build import Outcome, Request, WorkerFailed, build, gather_inputs
from assets.contract import Check, Deferred, Table
from assets.estimate import with_estimate
from assets.lineage import Lineage
from assets.node import Node
from assets.recipe.yaml_file import Nodes, location_from, source_of
from assets.store.home import ROOT
from assets.store.manifest import explain_full_disk
from assets.store.provenance import seconds_spent
from assets.store.store import SHORT, Building, Recorded
from gpt_model.errors import UserError, sentence_of

# Every Pipes session raises it, about a parameter that is Dagster's own and not ours.
warnings.filterwarnings("ignore", message=".*expected_writer_count.*", category=dg.PreviewWarning)
# An API of Dagster's that may change with a minor version, which pyproject.toml bounds.
warnings.filterwarnings("ignore", message=".*CodeReference.*", category=dg.BetaWarning)

# The fault that killed a worker may have passed; the retry resumes from the last checkpoint.
RETRY = dg.RetryPolicy(max_retries=1, delay=5)
# Metadata that Dagster's pages show in a form of its own.
VERIFIED = "files verified"  # when, of a large artifact that was found
COLUMNS, ROWS, CODE = "dagster/column_schema", "dagster/row_count", "dagster/code_references"
PICTURE_LIMIT_BYTES = 1_000_000  # inline in one metadata entry; larger ones are in MLflow
PICTURE = re.compile(r"!\[([^\]]*)\]\(([^)\s]+\.png)\)")  # as Markdown links to one


@dataclass(frozen=True)
class RecipeEntry:
    """What the catalogue shows of a recipe on each of its assets."""

    base: Path  # its folder, which local sources are relative to
    owners: Sequence[str] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    lines: Nodes = field(default_factory=dict)  # its files, for references to their lines


def as_asset(node: Node, recipe: RecipeEntry) -> dg.AssetsDefinition:
    """`node` as a Dagster asset."""
    stage, base = node.stage, recipe.base

    @dg.asset(
        key=node.key,
        deps=[
            dg.AssetKey([node.recipe, *name.split("/")]) for name in (*node.upstream, *node.after)
        ],
        group_name=node.recipe,
        kinds=set(stage.kinds),
        owners=recipe.owners or None,
        tags={**recipe.tags, "stage": stage.name},
        description=node.description or stage.description,
        code_version=stage.version,
        pool=stage.pool,
        retry_policy=RETRY,
        check_specs=[_check_spec(check, node) for check in stage.checks],
        metadata={
            "stage version": stage.version,
            **recipe.metadata,
            **_code_references(node, recipe.lines),
            **({COLUMNS: _schema(stage.table)} if stage.table else {}),
        },
    )
    def asset(context: dg.AssetExecutionContext, lineage: Lineage) -> dg.MaterializeResult:
        try:
            with explain_full_disk(Path(lineage.home)):
                outcome = _build(context, node, base, lineage)
        except (UserError, OSError) as error:
            if (sentence := sentence_of(error)) is None:
                raise
            raise dg.Failure(sentence, allow_retries=False) from None
        except WorkerFailed as error:
            context.log.error(error.details)
            raise dg.Failure(str(error)) from None
        except (KeyboardInterrupt, DagsterExecutionInterruptedError) as interruption:
            # Re-raised as it is, the retry policy would start the step again. A failed step cancels
            # a run that is CANCELING: the page has set that, Ctrl-C and SIGTERM have not.
            run = context.instance.get_run_by_id(context.run.run_id)
            ending = (dg.DagsterRunStatus.CANCELING, dg.DagsterRunStatus.CANCELED)
            if run.status not in ending:
                context.instance.report_run_canceling(context.run, "The run was interrupted.")
            raise dg.Failure(
                f"{node.ref} was terminated; the next run goes on from there.", allow_retries=False
            ) from interruption
        context.log.info(
            f"{node.ref}: {'found and verified' if outcome.hit else 'built'} "
            f"{outcome.artifact.fingerprint[:12]}"
        )
        return dg.MaterializeResult(
            data_version=dg.DataVersion(outcome.artifact.digest),
            metadata=_metadata(outcome, lineage, node),
            check_results=list(_check_results(outcome.verdicts, node)),
        )

    return asset


class MessagesInStore(dg.PipesFileMessageReader):
    """Dagster's, which empties the file first; this one reads what a job that outlived its starter
    wrote meanwhile.
    """

    @contextmanager
    def read_messages(self, handler: dg.PipesMessageHandler) -> Iterator[Any]:
        path = Path(self._path)
        earlier = path.read_text(encoding="utf-8") if path.exists() else ""
        with super().read_messages(handler) as params:
            for line in earlier.splitlines(keepends=True):
                if line.endswith("\n"):  # the last may be half written
                    handler.handle_message(json.loads(line))
            yield params


def _build(context: dg.AssetExecutionContext, node: Node, base: Path, lineage: Lineage) -> Outcome:
    with ExitStack() as stack:

        def pipes(building: Building) -> Mapping[str, str]:
            """Opened for a worker only: Dagster warns of a session that nobody writes to."""
            session = dg.open_pipes_session(
                context=context,
                context_injector=dg.PipesEnvContextInjector(),
                message_reader=MessagesInStore(str(building.messages)),
            )
            return stack.enter_context(session).get_bootstrap_env_vars()

        def tag(name: str, value: str) -> None:
            context.instance.add_run_tags(context.run.run_id, {f"lineage/{name}": value})

        store, tracking = lineage.store(), lineage.tracking()
        tracking.serve(context.run.run_id, context.log.info)  # also where the build is refused
        request = Request(
            node,
            gather_inputs(store, node),
            node.config(base),
            lineage.execution(),
            dagster_run_id=context.run.run_id,
            environment=pipes,
            say=context.log.info,
            tag=tag,
        )
        return build(
            with_estimate(request, store),
            store,
            lineage.launcher(context.log.info, tag),
            tracking,
            lineage.remote(),
        )


def _check_spec(check: Check, node: Node) -> dg.AssetCheckSpec:
    return dg.AssetCheckSpec(
        check.name,
        asset=dg.AssetKey(node.key),
        description=check.description,
        blocking=check.blocking,
    )


def _check_results(verdicts: Mapping[str, Recorded], node: Node) -> Iterator[dg.AssetCheckResult]:
    """One for each check of the stage as it is now, which Dagster asks for, whatever the artifact
    that was found was judged by.
    """
    for check in node.stage.checks:
        verdict = verdicts.get(check.name) or Recorded(
            False, check.blocking, "Not judged: this check is newer than the artifact."
        )
        yield dg.AssetCheckResult(
            asset_key=dg.AssetKey(node.key),
            check_name=check.name,
            passed=verdict.passed,
            severity=dg.AssetCheckSeverity.ERROR
            if verdict.blocking
            else dg.AssetCheckSeverity.WARN,
            description=verdict.summary,
            metadata=dict(verdict.figures),
        )


# Where a recipe asks for an asset whose section stands elsewhere than the node's field says.
SECTIONS = {
    "pretrained": "pretraining",
    "tokens": "tokenizer",
    "scorecard": "name",
    "aligned": "alignment.ppo",
    "dpo": "alignment.dpo",
    "supervised": "alignment.supervised",
    "policy_init": "alignment.policy_init",
    "reward_model": "alignment.reward_model",
    "preferences": "alignment.preferences",
}


def _code_references(node: Node, lines: Nodes) -> Mapping[str, Any]:
    """The lines of the recipe that ask for the asset, and the module that runs its stage."""
    references: list[dg.LocalFileCodeReference | dg.UrlCodeReference] = []
    if lines:
        path, line = source_of(
            lines, location_from(SECTIONS.get(node.name) or node.field or "name")
        )
        references.append(_reference(path, line, f"recipe: {path.name}"))
    if isinstance(node.stage.run, Deferred):
        path = ROOT / f"{node.stage.run.module.replace('.', '/')}.py"
        references.append(_reference(path, None, f"stage: {path.name}"))
    return {CODE: dg.CodeReferencesMetadataValue(code_references=references)}


def _reference(path: Path, line: int | None, label: str) -> dg.LocalFileCodeReference:
    return dg.LocalFileCodeReference(file_path=str(path), line_number=line, label=label)


def _schema(table: Table) -> dg.TableSchema:
    return dg.TableSchema(
        [
            dg.TableColumn(name, kind, description)
            for name, (kind, description) in table.columns.items()
        ]
    )


def _metadata(outcome: Outcome, lineage: Lineage, node: Node) -> dict[str, Any]:
    artifact, provenance = outcome.artifact, outcome.artifact.manifest["provenance"]
    shown: dict[str, Any] = {
        "fingerprint": artifact.fingerprint,
        "found": dg.MetadataValue.bool(outcome.hit),
        "size (bytes)": artifact.size,
        "duration (s)": round(seconds_spent(provenance), 2),
        "peak memory (MB)": round(provenance["peak_memory_bytes"] / 1e6, 1),
        "path": dg.MetadataValue.path(str(artifact.path)),
        "trace": f"gpt-lineage trace {artifact.fingerprint[:SHORT]}",
    }
    if outcome.hit and outcome.read_whole_at is not None:
        shown[VERIFIED] = dg.MetadataValue.timestamp(outcome.read_whole_at)
    if (table := node.stage.table) and not artifact.not_run:
        shown |= {COLUMNS: _schema(table), ROWS: table.count(artifact.metrics)}
    tracking = lineage.tracking()
    if (run := tracking.run_of(artifact)) and (url := tracking.run_url(run)):
        shown["MLflow run"] = dg.MetadataValue.url(url)
    shown |= _pictures(lineage.store().show(artifact))
    for name, value in artifact.metrics.items():
        shown[name if name not in shown else f"{name} (metric)"] = float(
            value
        )  # a stage may call a number of its own by a name of ours
    return shown


def _pictures(folder: Path) -> dict[str, Any]:
    """Every table, text and picture of the artifact, inline, and the path of every page; each under
    its file's name.
    """
    shown: dict[str, Any] = {}
    for path in sorted(path for path in folder.glob("*") if path.is_file()):
        if path.suffix == ".md":
            shown[path.name] = dg.MetadataValue.md(
                _with_pictures(path.read_text(encoding="utf-8"), folder)
            )
        elif path.suffix == ".png":
            shown[path.name] = dg.MetadataValue.md(
                _with_pictures(f"![{path.stem}]({path.name})", folder)
            )
        elif path.suffix == ".json":
            shown[path.name] = _table(json.loads(path.read_text(encoding="utf-8")))
        elif path.suffix != ".svg":  # the page's own; its PNG is shown
            shown[path.name] = dg.MetadataValue.path(str(path))
    return shown


def _table(table: Mapping[str, Any]) -> dg.TableMetadataValue:
    """The "short" columns of a table, which Dagster shows at once; Markdown of more than a few
    lines waits behind a click.
    """
    names = table["short"]
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]
    return dg.MetadataValue.table(
        [dg.TableRecord({name: row[name] for name in names}) for row in rows],
        dg.TableSchema([dg.TableColumn(name) for name in names]),
    )


def _with_pictures(markdown: str, folder: Path) -> str:
    """`markdown` with the pictures it links to in `folder` in it, in their order while they fit;
    the path of each that does not.
    """
    room = PICTURE_LIMIT_BYTES

    def inline(link: re.Match[str]) -> str:
        nonlocal room
        title, path = link[1], folder / link[2]
        if not path.is_file():
            return link[0]
        content = path.read_bytes()
        if len(content) > room:
            return f"{title}: `{path}`"
        room -= len(content)
        return f"![{title}](data:image/png;base64,{base64.b64encode(content).decode()})"

    return PICTURE.sub(inline, markdown)
