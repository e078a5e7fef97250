"""The ONE wrapper that turns a stage into a Dagster asset: build or find its artifact, and show it as a person wants it.

Dagster concepts: a software-defined asset with asset checks, `DataVersion` = digest, Pipes for what the worker says as it happens.
What a build *is* stands in `build.py`, without Dagster. (No postponed annotations in here: Dagster reads them as they stand.)
"""

import base64
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import dagster as dg
from dagster._core.errors import DagsterExecutionInterruptedError

from assets.build import Outcome, Request, WorkerFailed, build
from assets.contract import Check
from assets.graph import Node
from assets.resources.lineage import Lineage
from assets.resources.store import Recorded
from gpt_model.errors import UserError

# Every Pipes session raises it, about a parameter that is Dagster's own and not ours.
warnings.filterwarnings("ignore", message=".*expected_writer_count.*", category=dg.PreviewWarning)

RETRY = dg.RetryPolicy(max_retries=1, delay=5)  # a worker that died once may have met a passing fault; it resumes, it does not start over
PICTURE_LIMIT_BYTES = 600_000  # inline in metadata; larger ones are in MLflow


def as_asset(node: Node, base: Path, owners: list[str]) -> dg.AssetsDefinition:
    """`node` as a Dagster asset. `base` is the folder of its recipe, which local sources are relative to."""
    stage = node.stage

    @dg.asset(
        key=node.key,
        deps=[dg.AssetKey([node.recipe, *name.split("/")]) for name in node.needs],
        group_name=node.recipe,
        kinds=set(stage.kinds),
        owners=owners or None,
        description=node.description or stage.description,
        code_version=stage.version,
        pool=stage.pool,
        retry_policy=RETRY,
        check_specs=[_check_spec(check, node) for check in stage.checks],
        metadata={"recipe": node.recipe, "stage": stage.name, "stage version": stage.version},
    )
    def asset(context: dg.AssetExecutionContext, lineage: Lineage) -> dg.MaterializeResult:
        try:
            outcome = _build(context, node, base, lineage)
        except UserError as error:
            raise dg.Failure(str(error), allow_retries=False) from None
        except WorkerFailed as error:
            context.log.error(error.details)
            raise dg.Failure(str(error)) from None
        except (KeyboardInterrupt, DagsterExecutionInterruptedError) as interruption:
            # Raised as it is, the retry policy would start the step again. A failed step of a run that is being canceled cancels it;
            # the page has said so already, Ctrl-C and SIGTERM have not.
            if context.instance.get_run_by_id(context.run.run_id).status != dg.DagsterRunStatus.CANCELING:
                context.instance.report_run_canceling(context.run, "The run was interrupted.")
            raise dg.Failure(f"{node.ref} was terminated; the next run goes on from there.", allow_retries=False) from interruption
        context.log.info(f"{node.ref}: {'found and verified' if outcome.hit else 'built'} {outcome.artifact.fingerprint[:12]}")
        return dg.MaterializeResult(
            data_version=dg.DataVersion(outcome.artifact.digest),
            metadata=_metadata(outcome, lineage, node),
            check_results=list(_check_results(outcome.verdicts, node)),
        )

    return asset


def _build(context: dg.AssetExecutionContext, node: Node, base: Path, lineage: Lineage) -> Outcome:
    injector, reader = dg.PipesEnvContextInjector(), dg.PipesTempFileMessageReader()
    with dg.open_pipes_session(context=context, context_injector=injector, message_reader=reader) as session:
        request = Request(
            node, base, lineage.execution(), dagster_run_id=context.run.run_id,
            environment=session.get_bootstrap_env_vars(), say=context.log.info,
        )  # fmt: skip
        return build(request, lineage.store(), lineage.launcher(), lineage.tracking())


def _check_spec(check: Check, node: Node) -> dg.AssetCheckSpec:
    return dg.AssetCheckSpec(check.name, asset=dg.AssetKey(node.key), description=check.description, blocking=check.blocking)


def _check_results(verdicts: Mapping[str, Recorded], node: Node) -> Iterator[dg.AssetCheckResult]:
    for name, verdict in verdicts.items():
        yield dg.AssetCheckResult(
            asset_key=dg.AssetKey(node.key),
            check_name=name,
            passed=verdict.passed,
            severity=dg.AssetCheckSeverity.ERROR if verdict.blocking else dg.AssetCheckSeverity.WARN,
            description=verdict.summary,
            metadata=dict(verdict.figures),
        )


def _metadata(outcome: Outcome, lineage: Lineage, node: Node) -> dict[str, Any]:
    artifact, provenance = outcome.artifact, outcome.artifact.manifest["provenance"]
    shown: dict[str, Any] = {
        "fingerprint": artifact.fingerprint,
        "found": dg.MetadataValue.bool(outcome.hit),
        "size (bytes)": sum(file["size"] for file in artifact.manifest["files"]),
        "seconds": float(provenance["stage_seconds"]),
        "peak memory (MB)": provenance["peak_memory_bytes"] / 1e6,
        "path": dg.MetadataValue.path(str(artifact.path)),
        "trace": f"gpt-lineage trace {node.ref}",
    }
    tracking = lineage.tracking()
    if (run := tracking.run_of(artifact)) and (url := tracking.run_url(run)):
        shown["MLflow run"] = dg.MetadataValue.url(url)
    shown |= {name: float(value) for name, value in artifact.metrics.items()}
    return shown | _pictures(lineage.store().show(artifact))


def _pictures(folder: Path) -> dict[str, Any]:
    """Tables and pictures of the artifact, inline."""
    shown: dict[str, Any] = {}
    for path in sorted(folder.glob("*")) if folder.is_dir() else []:
        title = path.stem.replace("_", " ")
        if path.suffix == ".md":
            shown[title] = dg.MetadataValue.md(path.read_text())
        elif path.suffix == ".png" and path.stat().st_size <= PICTURE_LIMIT_BYTES:
            shown[title] = dg.MetadataValue.md(f"![{title}](data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()})")
        else:
            shown[title] = dg.MetadataValue.path(str(path))
    return shown
