"""Recipe: WHAT to build, one YAML a model, nothing about machines. Each section is what identifies the stages it feeds.

`extends: NAME` merges a recipe over another (mappings are merged key by key, everything else is replaced).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationInfo, field_validator, model_validator

from assets.yaml_file import SUFFIXES, find_file, naming, read_yaml, validate, yaml_files
from gpt_model.config import ModelConfig, ModelShape
from gpt_model.data.sources import Source
from gpt_model.errors import UserError, about

OWNER = re.compile(r"team:.+|[A-Za-z0-9._%+-]+@[A-Za-z0-9.-]+\.[A-Za-z]{2,7}")  # as Dagster has it
RECIPES = Path(__file__).resolve().parent.parent / "recipes"


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


Seed = Annotated[int, Field(ge=0, lt=2**63)]  # what torch's generators take
Memory = Annotated[float, Field(ge=0, lt=1)]  # of an optimizer's moment: the share of it that a step keeps


class CorpusSection(Section):
    """Where the text comes from, in what mixture, and how much of each source is kept from training."""

    sources: list[Source] = Field(min_length=1)
    held_out: float = Field(default=0.02, gt=0, lt=1, description="share of each source's documents kept from training")
    seed: Seed = Field(default=0, description="of the held-out split, and of every task's split by document")

    @field_validator("sources")
    @classmethod
    def _names_and_weights(cls, sources: list[Source]) -> list[Source]:
        names = [source.name for source in sources]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two sources are named {twice[0]!r}: give each its own name")
        if sum(source.weight for source in sources) <= 0:
            raise ValueError("the weights sum to 0: give at least one source a weight above 0")
        return sources


class TokenizerSection(Section):
    style: Literal["gpt2"] = "gpt2"
    vocab_size: int = Field(ge=257, description="the 256 bytes, <|endoftext|> and the merges")


class PretrainingSection(Section):
    """One pass of the training loop over `tokens` tokens."""

    tokens: int = Field(ge=1)
    batch_tokens: int = Field(ge=1, description="tokens an optimizer step, whatever the profile")
    learning_rate: float = Field(gt=0)
    final_learning_rate: float = Field(default=0.1, ge=0, le=1, description="where the cosine ends, as a share of learning_rate")
    warmup_tokens: int = Field(default=0, ge=0)
    weight_decay: float = Field(default=0.1, ge=0)
    betas: tuple[Memory, Memory] = (0.9, 0.95)
    gradient_clip: float = Field(default=1.0, gt=0)
    precision: Literal["float32", "bfloat16"] = "float32"
    seed: Seed = 1
    evaluations: int = Field(
        default=10, ge=1, description="times held-out bits per byte is measured on the way, evenly spaced; the last is at the end"
    )
    evaluation_tokens: int = Field(default=65_536, ge=1, description="held-out tokens a source measured on the way; the end measures all")
    samples: int = Field(default=3, ge=0, description="texts written at each evaluation")

    @field_validator("betas", mode="before")
    @classmethod
    def _pair(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    @model_validator(mode="after")
    def _sizes_fit(self) -> PretrainingSection:
        if self.warmup_tokens >= self.tokens:
            raise ValueError(f"warmup_tokens {self.warmup_tokens} leaves nothing of tokens {self.tokens}: make it smaller")
        if self.batch_tokens > self.tokens:
            raise ValueError(f"batch_tokens {self.batch_tokens} is more than tokens {self.tokens}: make it smaller")
        return self


class FinetuningSection(Section):
    """GPT-1's fine-tuning (Radford et al. 2018, section 4.1), once a task."""

    tasks: list[str] = Field(min_length=1)
    auxiliary_weight: float = Field(default=0.5, ge=0, description="λ of L3 = L2 + λ·L1, equation 5")
    epochs: int = Field(default=3, ge=1)
    batch: int = Field(default=32, ge=1, description="examples an optimizer step")
    learning_rate: float = Field(default=6.25e-5, gt=0)
    warmup: float = Field(default=0.002, ge=0, lt=1, description="share of the steps")
    dropout: float = Field(default=0.1, ge=0, lt=1)
    weight_decay: float = Field(default=0.01, ge=0)
    gradient_clip: float = Field(default=1.0, gt=0)
    seed: Seed = 1
    examples: dict[str, Annotated[int, Field(ge=1)]] = Field(
        default_factory=dict, description="task -> at most so many training examples, a seeded subset"
    )
    held_back: dict[str, Annotated[int, Field(ge=2)]] = Field(
        default_factory=dict, description="task -> at most so many validation and so many test examples, seeded subsets"
    )


class EvaluationSection(Section):
    suites: list[str] = Field(min_length=1)
    examples: dict[str, Annotated[int, Field(ge=2)]] = Field(
        default_factory=dict, description="suite -> at most so many examples a task; an interval needs two"
    )


class Recipe(Section):
    """A whole recipe. See recipes/tiny.yaml for one explained line by line."""

    name: str = Field(pattern=r"^[A-Za-z0-9_]+$", description="letters, digits and _; the first part of every asset key")
    description: str = ""
    owners: list[str] = Field(default_factory=list, description="e-mail addresses, or team:NAME")
    corpus: CorpusSection
    tokenizer: TokenizerSection
    model: ModelShape
    pretraining: PretrainingSection
    finetuning: FinetuningSection | None = None
    evaluation: EvaluationSection | None = None
    _files: tuple[Path, ...] = PrivateAttr(default=())

    @property
    def files(self) -> tuple[Path, ...]:
        """The file it was read from, and those that one extends, nearest first."""
        return self._files

    @field_validator("owners")
    @classmethod
    def _people_or_teams(cls, owners: list[str]) -> list[str]:
        if strange := [owner for owner in owners if not OWNER.fullmatch(owner)]:
            raise ValueError(f"{strange[0]!r} is neither an e-mail address nor team:NAME")
        return owners

    @field_validator("pretraining")
    @classmethod
    def _batch_is_whole_sequences(cls, pretraining: PretrainingSection, info: ValidationInfo) -> PretrainingSection:
        batch, context = pretraining.batch_tokens, info.data["model"].context if "model" in info.data else 1
        if batch % context:
            raise ValueError(
                f"batch_tokens {batch} is not a whole number of sequences of model.context {context} tokens: "
                f"set it to {max(1, round(batch / context)) * context}"
            )
        return pretraining

    def model_config_for(self, vocab_size: int | None = None) -> ModelConfig:
        """The whole model, with the vocabulary the tokenizer really has, or else the one the recipe asks for."""
        return ModelConfig(**self.model.model_dump(), vocab_size=vocab_size or self.tokenizer.vocab_size)


def load_recipe(name_or_path: str) -> Recipe:
    """A recipe by its name under recipes/ or by path. Raises UserError naming file, line and field."""
    files = _extended(find_file(name_or_path, RECIPES, "recipe"))
    data: dict[str, Any] = {}
    for contents in reversed(files.values()):
        data = _merge(data, contents)
    recipe = validate(Recipe, data, list(files))
    recipe._files = tuple(files)
    return recipe


def _extended(path: Path) -> dict[Path, dict[str, Any]]:
    """What stands in a recipe's file, and in each one it extends, nearest first."""
    files = {path: read_yaml(path)}
    while (parent := files[path].pop("extends", None)) is not None:
        with naming([path]), about("extends"):
            path = _parent(str(parent), path.parent)
            if path in files:
                raise UserError(f"It comes back to itself: {' → '.join(file.stem for file in (*files, path))}.")
        files[path] = read_yaml(path)
    return files


def _parent(name: str, folder: Path) -> Path:
    """The recipe that `extends` means: a file as seen from `folder`, or the name of one in it, or of one under recipes/."""
    if name.endswith(SUFFIXES):
        return find_file(str(folder / name), folder, "recipe")
    return find_file(name, folder if any(file.stem == name for file in yaml_files(folder)) else RECIPES, "recipe")


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        merged[key] = _merge(base[key], value) if isinstance(value, dict) and isinstance(base.get(key), dict) else value
    return merged
