"""A model directory as an MLflow logged model and a registered version, written without importing
torch or transformers.

MLflow's own `log_model` loads the model to look at it. What it would write is little: an MLmodel
file that says which class loads what, beside the directory `transformers` loads anyway.
`mlflow.transformers.load_model` and `mlflow.pyfunc.load_model` read it. A fine-tuned model's
python_function is the task's own (`gpt_model.finetuning.pyfunc`), its transformers flavor the
decoder alone. A directory that is no causal language model of transformers' is logged with its
files and no flavor.
"""

from __future__ import annotations

import json
import platform
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.entities import LoggedModel, LoggedModelOutput
from mlflow.entities.logged_model_status import LoggedModelStatus
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.models.signature import ModelSignature
from mlflow.models.utils import _save_example
from mlflow.tracking.client import MlflowClient
from mlflow.types.llm import CHAT_MODEL_INPUT_SCHEMA, CHAT_MODEL_OUTPUT_SCHEMA
from mlflow.types.schema import AnyType, Array, ColSpec, DataType, ParamSchema, ParamSpec, Schema

NOT_THE_TOKENIZERS = (".safetensors", ".index.json")
MODEL_VERSIONS = (
    "mlflow.modelVersions"  # by this tag the model's page links to its registered version
)
CONTEXT_FIELDS = ("n_positions", "max_position_embeddings")  # of the classes of `transformers`
TASK_LAYOUT = "task_layout.json"  # in the folder of a fine-tuned model
CHAT = "llm/v1/chat"  # MLflow's task of a model that answers messages
CHAT_TEMPLATE = "chat_template.jinja"  # in the folder of a model that does
# What `predict(…, params={…})` takes, by the names of `transformers`; these are the defaults.
SAMPLING = ParamSchema(
    [
        ParamSpec("max_new_tokens", "long", 64),
        ParamSpec("do_sample", "boolean", True),
        ParamSpec("temperature", "double", 0.7),
        ParamSpec("top_k", "long", 0),
        ParamSpec("top_p", "double", 1.0),
    ]
)
# The same name in a clone and where the wheel is installed, unlike what is under `assets`.
TASK_LOADER = "gpt_model.finetuning.pyfunc"
REQUIREMENTS = ("torch", "transformers", "tokenizers", "safetensors")


@dataclass(frozen=True)
class ModelFacts:
    """What MLflow is to know of a model."""

    build_tag: tuple[str, str]  # finds what an interrupted delivery has made already
    name: str
    description: str
    experiment: str
    run_id: str
    step: int
    fingerprint: str
    digest: str
    parameters: Mapping[str, str]
    packages: Mapping[str, str]
    scores: Mapping[str, str]  # tags of the registered version


def deliver_model(client: MlflowClient, files: Path, facts: ModelFacts) -> str:
    """Logs and registers the model directory in `files` (itself, or its `model/`). Returns the
    logged model's id.
    """

    folder = files / "model" if (files / "model").is_dir() else files
    key, value = facts.build_tag
    tags = {key: value, "lineage.fingerprint": facts.fingerprint, "lineage.digest": facts.digest}
    matches = client.search_logged_models(
        [facts.experiment], f"tags.`{key}` = '{value}'", max_results=1
    )
    model = (
        matches[0]
        if matches
        else client.create_logged_model(
            facts.experiment, facts.name, facts.run_id, tags, dict(facts.parameters)
        )
    )
    if model.status != LoggedModelStatus.READY:
        _upload(client, model.model_id, folder, facts)
        client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    outputs = client.get_run(facts.run_id).outputs
    if not outputs or model.model_id not in [output.model_id for output in outputs.model_outputs]:
        client.log_outputs(facts.run_id, [LoggedModelOutput(model.model_id, facts.step)])
    _register(client, model, tags, facts)
    return str(model.model_id)


def _register(
    client: MlflowClient, model: LoggedModel, tags: dict[str, str], facts: ModelFacts
) -> None:
    """A version of the registered model. Its source is a location and no `models:/` URI, which
    MLflow looks up on its global server.
    """

    try:
        client.create_registered_model(facts.name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    if not client.search_model_versions(f"run_id = '{facts.run_id}'", max_results=1):
        version = client.create_model_version(
            facts.name,
            model.artifact_location,
            facts.run_id,
            dict(facts.scores) | tags,
            description=facts.description,
            await_creation_for=0,
            model_id=model.model_id,
        )
        client.set_logged_model_tags(
            model.model_id,
            {MODEL_VERSIONS: json.dumps([{"name": version.name, "version": version.version}])},
        )


def _upload(client: MlflowClient, model_id: str, folder: Path, facts: ModelFacts) -> None:
    """MLflow's layout of a transformers model: model/, components/tokenizer/, MLmodel."""
    client.log_model_artifacts(model_id, str(folder), "model")
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer = _tokenizer(folder, Path(scratch) / "tokenizer")
        client.log_model_artifacts(model_id, str(tokenizer), "components/tokenizer")
    with tempfile.TemporaryDirectory() as scratch:
        _describe(Path(scratch), model_id, folder, facts)
        client.log_model_artifacts(model_id, scratch)


def _tokenizer(folder: Path, copy: Path) -> Path:
    """The folder's files but its weights, as programs other than ours want a tokenizer."""
    # Imports the Rust library.
    from gpt_model.tokenizer.exported import CONFIG_FILE, SPECIAL_FILE, complete

    copy.mkdir()
    for path in sorted(folder.iterdir()):
        if path.is_file() and not path.name.endswith(NOT_THE_TOKENIZERS):
            shutil.copyfile(path, copy / path.name)
    config = _config(folder)
    context = next((config[field] for field in CONTEXT_FIELDS if field in config), None)
    if context is not None and all((copy / name).is_file() for name in (CONFIG_FILE, SPECIAL_FILE)):
        complete(copy, context, "left")
    return copy


def _config(folder: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return {}
    return config


def _describe(scratch: Path, model_id: str, folder: Path, facts: ModelFacts) -> None:

    task = _task_form(folder)
    chats = task is None and _is_causal(folder) and (folder / CHAT_TEMPLATE).is_file()
    model = Model(
        artifact_path="model",
        run_id=facts.run_id,
        model_id=model_id,
        signature=_signature(task, chats),
        metadata={"task": CHAT} if chats else None,
    )
    if _is_causal(folder):
        model.add_flavor(
            "transformers",
            task="text-generation",
            instance_type="TextGenerationPipeline",
            pipeline_model_type="AutoModelForCausalLM",
            source_model_name=facts.name,
            model_binary="model",
            components=["tokenizer"],
            tokenizer_type="AutoTokenizer",
            transformers_version=facts.packages.get("transformers", ""),
            **({"inference_task": CHAT} if chats else {}),
        )
        environment = {"virtualenv": "python_env.yaml"}
        loader = (
            {"loader_module": TASK_LOADER, "data": "model"}
            if task
            else {"loader_module": "mlflow.transformers"}
        )
        model.add_flavor(
            "python_function", python_version=platform.python_version(), env=environment, **loader
        )
        _save_example(model, _example(task, chats), str(scratch))
    model.save(str(scratch / "MLmodel"))
    pins = [f"{name}=={facts.packages[name]}" for name in REQUIREMENTS if name in facts.packages]
    (scratch / "requirements.txt").write_text("\n".join(pins) + "\n", encoding="utf-8")
    (scratch / "python_env.yaml").write_text(
        f"python: {platform.python_version()}\ndependencies:\n- -r requirements.txt\n",
        encoding="utf-8",
    )


def _task_form(folder: Path) -> str | None:
    """The form of a fine-tuned model's rows; None where it continues text."""
    path = folder / TASK_LAYOUT
    if not path.is_file():
        return None
    return str(json.loads(path.read_text(encoding="utf-8"))["layout"]["form"])


def _signature(task: str | None, chats: bool) -> ModelSignature:
    """Text for text, a list of strings or a column of any name, with how it is sampled; a chat as
    MLflow's endpoints have it. Of a task's model a row's text, or the texts of its segments, for an
    answer; for multiple choice its segments and options.
    """
    text, texts = Schema([ColSpec("string")]), Array(DataType.string)
    if chats:
        return ModelSignature(CHAT_MODEL_INPUT_SCHEMA, CHAT_MODEL_OUTPUT_SCHEMA, SAMPLING)
    if task is None:
        return ModelSignature(text, text, SAMPLING)
    if task == "multiple_choice":
        return ModelSignature(Schema([ColSpec(texts, "segments"), ColSpec(texts, "options")]), text)
    return ModelSignature(Schema([ColSpec(AnyType())]), text)


def _example(task: str | None, chats: bool) -> Any:
    if chats:
        return {"messages": [{"role": "user", "content": "Who wrote the plays?"}]}
    if task is None:
        return ["Once upon a time"]
    row: dict[str, list[str]] = {"segments": ["It was a fine evening."]}
    if task == "multiple_choice":
        row["options"] = ["We went home.", "It rained."]
    elif task != "classification":
        row["segments"].append("The evening was fine.")
    return pd.DataFrame([row])


def _is_causal(folder: Path) -> bool:
    names = _config(folder).get("architectures") or []
    return any("CausalLM" in name or "LMHead" in name for name in names)
