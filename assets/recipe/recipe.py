"""Recipe: WHAT to build, one YAML a model, nothing about machines. Each section is what identifies
the stages it feeds.

`extends: NAME` merges a recipe over another (`extends.py`), `depth: N` sets what a number of layers
sets (`depth.py`).
"""

from __future__ import annotations

import keyword
import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import (
    Field,
    PrivateAttr,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from assets.recipe.depth import Dial
from assets.recipe.depth import merged as dialled
from assets.recipe.extends import extended, merged
from assets.recipe.sections import AlignmentSection, ExperimentsSection
from assets.recipe.yaml_file import RECIPES, find_file, here_and, naming, validate
from gpt_model.config import DEFAULT_BAND, PUBLISHED, ModelConfig, ModelShape
from gpt_model.data.location import Located
from gpt_model.data.sources import Source
from gpt_model.data.vocabularies import ReleasedTokenizer
from gpt_model.errors import UserError
from gpt_model.finetuning.entry import Splits
from gpt_model.published import references
from gpt_model.strict import (
    LARGEST_RUN,
    BatchRows,
    BatchTokens,
    Betas,
    Bounds,
    Clip,
    Count,
    Dropout,
    Each,
    Epochs,
    HeldOut,
    Layers,
    LearningRate,
    Memory,
    Misfit,
    Part,
    Precision,
    Ratio,
    Seed,
    Strict,
    Times,
    Tokens,
    TwoOrMore,
    VocabSize,
    Weight,
    WeightDecay,
    Whole,
    Width,
)

OWNER = re.compile(r"team:.+|[A-Za-z0-9._%+-]+@[A-Za-z0-9.-]+\.[A-Za-z]{2,7}")  # as Dagster has it
# Dagster's DISALLOWED_NAMES beside Python's keywords; reading a recipe loads no Dagster.
RESERVED_BY_DAGSTER = frozenset(
    [
        "context",
        "conf",
        "config",
        "meta",
        "arg_dict",
        "dict",
        "input_arg_dict",
        "output_arg_dict",
        "int",
        "str",
        "float",
        "bool",
        "input",
        "output",
        "type",
    ]
)


class Section(Strict):
    """A part of a recipe."""


Projections = Literal[
    "attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"
]  # of a block: into attention, out of it, into the MLP, out


class CorpusSection(Section):
    """Where the text comes from, in what mixture, and how much of each source is kept from
    training.
    """

    sources: list[Source] = Field(min_length=1, description="what is read, and its share")
    held_out: HeldOut = Field(
        default=0.02, description="share of each source's documents kept from training"
    )
    seed: Seed = Field(
        default=0, description="of the held-out split, and of every task's split by document"
    )

    @field_validator("sources")
    @classmethod
    def _names_and_weights(cls, sources: list[Source]) -> list[Source]:
        names = [source.name for source in sources]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two sources are named {twice[0]!r}: give each its own name")
        if sum(source.weight for source in sources) <= 0:
            raise ValueError("the weights sum to 0: give at least one source a weight above 0")
        return sources


RELEASED_SIZES = {  # style -> tokens of the paper's own vocabulary
    "gpt1": PUBLISHED["gpt1"].vocab_size,
    "gpt2": PUBLISHED["gpt2-small"].vocab_size,
}


class TokenizerSection(Section):
    """A vocabulary, trained on this corpus or released."""

    style: Literal["gpt1", "gpt2"] = Field(
        default="gpt2",
        description="gpt2: byte-level BPE; gpt1: BPE of lower-cased words, by ftfy and spaCy",
    )
    vocab_size: VocabSize = Field(
        description="gpt2: the 256 bytes, merges, <|endoftext|>; gpt1: <unk>, characters twice, "
        "merges, newline; default of a released one: the paper's"
    )
    from_: ReleasedTokenizer | None = Field(
        default=None,
        alias="from",
        description="a released vocabulary, where none is learnt: a folder, OWNER/NAME on the hub, "
        "or a package's files",
    )

    @model_validator(mode="before")
    @classmethod
    def _size_of_the_release(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.get("from") is None or "vocab_size" in data:
            return data
        return {**data, "vocab_size": RELEASED_SIZES.get(data.get("style", "gpt2"))}

    @model_serializer(mode="wrap")
    def _without_none(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """As it was before there was `from`, where there is none."""
        section = handler(self)
        released = section.pop("from_", None)
        return section if released is None else {**section, "from": released}

    @field_validator("vocab_size")
    @classmethod
    def _basis_fits(cls, value: int, info: ValidationInfo) -> int:
        least, basis = (
            (4, "<unk>, a character twice and newline")
            if info.data.get("style") == "gpt1"
            else (257, "256 bytes and <|endoftext|>")
        )
        if value < least:
            raise ValueError(
                f"{value} is too small: style {info.data.get('style')} has {basis}. Set it to at "
                f"least {least}"
            )
        return value


class BatchRamp(Section):
    """GPT-3's gradual increase of the batch (appendix B): from 32 thousand tokens, linearly over
    the first 4 to 12 billion.
    """

    from_tokens: BatchTokens = Field(
        description="the first batch; every later one is a whole multiple of it, or batch_tokens"
    )
    over_tokens: Tokens = Field(description="tokens after which the batch is batch_tokens")


class MuonSection(Section):
    """How Muon steps the matrices of blocks. Its steps are about as large as AdamW's (Liu et al.
    2025), so the rate and decay that are left out are AdamW's too.
    """

    learning_rate: LearningRate | None = Field(
        default=None,
        description="of those matrices, once the warm-up is over; default: that of pretraining",
    )
    weight_decay: WeightDecay | None = Field(
        default=None, description="of those matrices; default: that of pretraining"
    )
    momentum: Memory = Field(default=0.95, description="the share of it that a step keeps")
    nesterov: bool = Field(default=True, description="a step looks ahead by another gradient")
    ns_steps: Annotated[
        int, Bounds(1, 20, "published ones are 5 or 6, and each takes its time", unit="iterations")
    ] = Field(default=5, description="Newton-Schulz iterations that make a matrix orthogonal")


STRETCHES = 10_000  # of equal batches on a ramp; GPT-3's longest has 96


class PretrainingSection(Section):
    """One pass of the training loop over `tokens` tokens."""

    tokens: Tokens = Field(description="that are trained on; a corpus with fewer is read again")
    batch_tokens: BatchTokens = Field(description="tokens an optimizer step, whatever the profile")
    learning_rate: LearningRate
    final_learning_rate: Whole = Field(
        default=0.1, description="where the cosine ends, as a share of learning_rate"
    )
    warmup_tokens: Annotated[int, Bounds(0, 10**15, LARGEST_RUN, unit="tokens")] = Field(
        default=0, description="over which the learning rate rises to its full value"
    )
    decay_tokens: Tokens | None = Field(
        default=None,
        description="where the cosine ends, warm-up counted in; constant from there on; default: "
        "with the training",
    )
    batch_ramp: BatchRamp | None = None
    # Added later: a default changes no fingerprint made before
    optimizer: Literal["adamw", "muon"] = Field(
        default="adamw",
        description="muon: for the matrices of blocks (Jordan et al. 2024); embeddings and vectors "
        "are AdamW's",
        exclude_if=lambda optimizer: optimizer == "adamw",
    )
    muon: MuonSection | None = Field(default=None, exclude_if=lambda muon: muon is None)
    weight_decay: WeightDecay = 0.1
    betas: Betas = (0.9, 0.95)
    gradient_clip: Clip = 1.0
    precision: Precision = "float32"
    seed: Seed = 1
    evaluations: Times = Field(
        default=10,
        description="times held-out bits per byte is measured on the way, evenly spaced; the "
        "last is at the end",
    )
    evaluation_tokens: Tokens = Field(
        default=65_536,
        description="held-out tokens a source measured on the way; the end measures all",
    )
    samples: Annotated[
        int, Bounds(0, 1_000, "each is written at every evaluation", unit="texts")
    ] = Field(default=3, description="texts written at each evaluation")
    snapshots: Annotated[int, Bounds(0, 10_000, "each takes the disk of a model", unit="times")] = (
        Field(
            default=0,
            description="times the weights on the way are kept (float32), on a log schedule from "
            "step 1; the last is the model",
        )
    )

    @model_validator(mode="before")
    @classmethod
    def _muon_has_its_defaults(cls, section: Any) -> Any:
        """Written out or not, they are the same training."""
        if isinstance(section, dict) and section.get("optimizer") == "muon":
            return {**section, "muon": section.get("muon") or {}}
        return section

    @model_validator(mode="after")
    def _optimizer_has_its_settings(self) -> PretrainingSection:
        if self.muon and self.optimizer != "muon":
            raise Misfit(
                f"they are Muon's settings, and optimizer is {self.optimizer}: write optimizer: "
                "muon, or leave them out",
                "muon",
            )
        return self

    @model_validator(mode="after")
    def _sizes_fit(self) -> PretrainingSection:
        if self.warmup_tokens >= self.tokens:
            raise ValueError(
                f"warmup_tokens {self.warmup_tokens} leaves nothing of tokens {self.tokens}: make "
                "it smaller"
            )
        if self.batch_tokens > self.tokens:
            raise ValueError(
                f"batch_tokens {self.batch_tokens} is more than tokens {self.tokens}: make it "
                "smaller"
            )
        if self.decay_tokens is not None and self.decay_tokens <= self.warmup_tokens:
            raise ValueError(
                f"decay_tokens {self.decay_tokens} is no more than warmup_tokens "
                f"{self.warmup_tokens}: make it larger"
            )
        if self.batch_ramp and self.batch_ramp.from_tokens > self.batch_tokens:
            raise ValueError(
                f"batch_ramp.from_tokens {self.batch_ramp.from_tokens} is more than batch_tokens "
                f"{self.batch_tokens}"
            )
        if self.batch_ramp and self.batch_tokens // self.batch_ramp.from_tokens > STRETCHES:
            raise Misfit(
                f"batch_tokens {self.batch_tokens} is more than {STRETCHES:,} times "
                f"from_tokens {self.batch_ramp.from_tokens}, and the ramp has a stretch for each "
                "multiple: make it larger",
                "batch_ramp.from_tokens",
            )
        if self.batch_ramp and self.batch_ramp.over_tokens > self.tokens:
            raise ValueError(
                f"batch_ramp.over_tokens {self.batch_ramp.over_tokens} is more than tokens "
                f"{self.tokens}: make it smaller"
            )
        return self


class FinetuningSection(Section):
    """GPT-1's fine-tuning (Radford et al. 2018, section 4.1), once a task."""

    tasks: list[str] = Field(
        min_length=1, description="of the catalogue, or paths of YAML files; each is a model"
    )
    auxiliary_weight: Weight = Field(default=0.5, description="λ of L3 = L2 + λ·L1, equation 5")
    epochs: Epochs = 3
    batch: BatchRows = Field(default=32, description="examples an optimizer step")
    learning_rate: LearningRate = 6.25e-5
    warmup: Part = Field(default=0.002, description="share of the steps")
    dropout: Dropout = 0.1
    weight_decay: WeightDecay = 0.01
    gradient_clip: Clip = 1.0
    seed: Seed = 1
    examples: dict[str, Count] = Field(
        default_factory=dict,
        description="task -> at most so many training examples, a seeded subset",
    )
    held_back: dict[str, TwoOrMore] = Field(
        default_factory=dict,
        description="task -> at most so many validation and so many test examples, seeded subsets",
    )
    files: dict[str, str | Splits] = Field(
        default_factory=dict,
        description="task -> a local file of the task's columns, or one a split, read in place "
        "of its own source",
    )


class ScalingSection(Section):
    """A ladder of small models of the recipe, whose losses make a law; the largest is predicted
    before it is trained (`ladder.py`).
    """

    rungs: list[Layers | Annotated[list[Width], Field(min_length=2, max_length=2)]] = Field(
        min_length=2,
        description="numbers of layers, or [layers, width]; the rest by the rules of the dial, "
        "anchored at the recipe",
    )
    tokens_per_parameter: Ratio | list[Ratio] = Field(
        default=20.0, description="a list: every rung at each of them"
    )
    seeds: list[Seed] = Field(
        default=[1], min_length=1, description="each rung is trained with each of them"
    )

    @property
    def ratios(self) -> list[float]:
        return (
            self.tokens_per_parameter
            if isinstance(self.tokens_per_parameter, list)
            else [self.tokens_per_parameter]
        )

    @model_validator(mode="after")
    def _enough_for_a_law(self) -> ScalingSection:
        if not self.ratios:
            raise ValueError("tokens_per_parameter is an empty list: give a number")
        for name, values in (
            ("rungs", self.rungs),
            ("seeds", self.seeds),
            ("tokens_per_parameter", self.ratios),
        ):
            if len({str(value) for value in values}) < len(values):
                raise ValueError(f"{name}: one stands twice; take it out")
        if (sizes := len(self.rungs) * len(self.ratios)) < 3:
            raise Misfit(
                "a law takes three sizes, the largest to predict and two to be fitted to: found "
                f"{sizes}. Add a rung",
                "rungs",
            )
        if (models := (sizes - 1) * len(self.seeds)) < 4:
            raise Misfit(
                f"an interval takes four models below the largest size: found {models}. Add a "
                "rung, or seeds",
                "rungs",
            )
        return self


class ImportedSection(Located):
    """Somebody else's model in place of one trained here: a repository on the Hugging Face hub, or
    a folder laid out like one.
    """

    LOCATIONS: ClassVar = ("hub", "folder")

    hub: str | None = Field(default=None, description="OWNER/NAME")
    revision: str = Field(
        default="main",
        description="a branch, a tag or a commit of `hub`; tied to its commit when a build is "
        "planned",
    )
    folder: str | None = Field(default=None, description="relative to the recipe")
    licence: str = Field(default="unknown", description="of the weights")


class LoRASection(Section):
    """Adapters in place of whole weights, wherever training starts from given ones (Hu et al.
    2021).
    """

    rank: Width = Field(default=8, description="of an adapter's two matrices")
    alpha: Annotated[int, Bounds(1, 10**6, "twice the rank is usual")] = Field(
        default=16, description="what is added is multiplied by alpha / rank"
    )
    dropout: Dropout = Field(default=0.05, description="of an adapter's input")
    targets: list[Projections] = Field(
        default=list(get_args(Projections)),
        min_length=1,
        description="the matrices of a block that have an adapter",
    )

    @field_validator("targets")
    @classmethod
    def _each_once(cls, targets: list[Projections]) -> list[Projections]:
        return sorted(set(targets))


class EvaluationSection(Section):
    """Zero-shot evaluation by lm_eval."""

    suites: Annotated[list[str], Field(min_length=1), Each] = Field(
        description="of those that come with the project, or paths of YAML files"
    )
    examples: dict[str, TwoOrMore] = Field(
        default_factory=dict,
        description="suite -> at most so many examples a task; an interval needs two",
    )
    files: dict[str, str] = Field(
        default_factory=dict,
        description="suite/task -> a local file of the data set's columns, as seen from the "
        "recipe, read in its place",
    )

    known: str | None = Field(
        default=None,
        description="the published model this one is, whose known scores must come out: gpt2-small",
    )

    @field_validator("known")
    @classmethod
    def _has_known_scores(cls, known: str | None) -> str | None:
        scored = [row.model for row in references(role="reproduction") if row.kind == "scores"]
        # nobody has GPT-3's weights
        models = dict.fromkeys(
            name for name in scored if name in PUBLISHED and PUBLISHED[name].family != "gpt3"
        )
        if known is not None and known not in models:
            raise ValueError(
                f"no score of {known!r} is known; there are some of {', '.join(models)}"
            )
        return known


class Recipe(Section):
    """A whole recipe. See recipes/tiny.yaml for one explained line by line."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9_]+$",
        description="letters, digits and _; the first part of every asset key",
    )
    description: str = Field(default="", description="shown in Dagster and on the scorecard")
    owners: list[str] = Field(default_factory=list, description="e-mail addresses, or team:NAME")
    schedule: Literal["daily", "weekly", "monthly"] | None = Field(
        default=None,
        description="a Dagster schedule, off until somebody turns it on; not inherited",
    )
    imported: ImportedSection | None = None
    # A recipe that imports has neither model nor tokenizer of its own; corpus and pretraining,
    # where it goes on training.
    corpus: CorpusSection | None = Field(default=None, validate_default=True)
    tokenizer: TokenizerSection | None = Field(default=None, validate_default=True)
    model: ModelShape | None = Field(default=None, validate_default=True)
    pretraining: PretrainingSection | None = Field(default=None, validate_default=True)
    lora: LoRASection | None = None
    finetuning: FinetuningSection | None = None
    evaluation: EvaluationSection | None = None
    experiments: ExperimentsSection | None = None
    scaling: ScalingSection | None = None
    alignment: AlignmentSection | None = None
    _files: tuple[Path, ...] = PrivateAttr(default=())
    _dial: Dial | None = PrivateAttr(default=None)

    @property
    def dial(self) -> Dial | None:
        """What `depth: N` has set, where it stands in the recipe's file or in one that extends it:
        `depth.py`.
        """
        return self._dial

    @property
    def files(self) -> tuple[Path, ...]:
        """The file it was read from, and those that one extends, nearest first."""
        return self._files

    @field_validator("name")
    @classmethod
    def _names_a_dagster_job(cls, name: str) -> str:
        if name in RESERVED_BY_DAGSTER or keyword.iskeyword(name):
            raise ValueError(f"{name!r} is a name that Dagster reserves; write my_{name}, say")
        return name

    @field_validator("owners")
    @classmethod
    def _people_or_teams(cls, owners: list[str]) -> list[str]:
        if strange := [owner for owner in owners if not OWNER.fullmatch(owner)]:
            raise ValueError(f"{strange[0]!r} is neither an e-mail address nor team:NAME")
        return owners

    @field_validator("corpus", "tokenizer", "model", "pretraining")
    @classmethod
    def _own_or_imported(cls, section: Section | None, info: ValidationInfo) -> Section | None:
        if "imported" not in info.data:  # it has a mistake of its own
            return section
        imports, name = info.data["imported"] is not None, info.field_name
        if section is None and not imports:
            raise PydanticCustomError("missing", "Field required")
        if section is not None and imports and name in ("tokenizer", "model"):
            raise ValueError(f"an imported model brings its own: leave {name} out")
        if (
            section is not None
            and imports
            and name == "pretraining"
            and info.data.get("corpus") is None
        ):
            raise ValueError(
                "there is no text to go on training on: add a corpus, or leave pretraining out"
            )
        return section

    @field_validator("finetuning", "evaluation", "experiments", "alignment")
    @classmethod
    def _of_a_transformer(cls, section: Section | None, info: ValidationInfo) -> Section | None:
        if section and (model := info.data.get("model")) and model.family == "lstm":
            raise ValueError(
                f"an LSTM is only measured against: leave {info.field_name} out, or write "
                "model.family: gpt1, gpt2 or gpt3"
            )
        return section

    @field_validator("evaluation")
    @classmethod
    def _only_an_imported_model_is_known(
        cls, section: EvaluationSection | None, info: ValidationInfo
    ) -> EvaluationSection | None:
        trained_here = (
            info.data.get("imported", section) is None or info.data.get("pretraining") is not None
        )
        if section and section.known and trained_here:
            raise Misfit(
                "it is of an imported model as it is, and this one is trained here: leave known "
                "out, or pretraining",
                "known",
            )
        return section

    @field_validator("pretraining")
    @classmethod
    def _batch_is_whole_sequences(
        cls, pretraining: PretrainingSection | None, info: ValidationInfo
    ) -> PretrainingSection | None:
        if pretraining and (model := info.data.get("model")):
            whole_sequences(pretraining.batch_tokens, model.context)
            if ramp := pretraining.batch_ramp:
                whole_sequences(ramp.from_tokens, model.context, "batch_ramp.from_tokens")
        return pretraining

    @model_validator(mode="after")
    def _has_what_it_names(self) -> Recipe:
        goes_on = self.imported is not None and self.pretraining is not None
        if self.lora and not (self.finetuning or goes_on):
            raise Misfit(
                "it adapts weights that are there already: add finetuning, or imported and "
                "pretraining, or leave lora out",
                "lora",
            )
        if self.lora and goes_on and self.pretraining and self.pretraining.snapshots:
            raise Misfit(
                "snapshots are of whole weights, and lora trains adapters: leave them or lora out",
                "pretraining.snapshots",
            )
        if self.lora and self.model and self.lora.rank > self.model.width:
            raise Misfit(
                f"{self.lora.rank} is more than model.width {self.model.width}, the rank of the "
                "whole weights: make it smaller, or leave lora out",
                "lora.rank",
            )
        if self.pretraining and self.pretraining.muon:
            self._check_muon(goes_on)
        band = self.model.band if self.model else None
        if self.model and band not in (None, DEFAULT_BAND) and band > self.model.context:
            raise Misfit(
                f"a band of {band} tokens is longer than context {self.model.context}, so that no "
                "layer is banded: make it smaller",
                "model.band",
            )
        for name in ("experiments", "scaling"):
            if getattr(self, name) and self.imported:
                raise Misfit(
                    f"it is about models that are trained here: leave {name} out, or imported", name
                )
        return self

    def _check_muon(self, goes_on: bool) -> None:
        if self.lora and goes_on:
            raise Misfit(
                "it steps whole matrices, and lora trains thin factors beside them: leave lora "
                "out, or write optimizer: adamw",
                "pretraining.optimizer",
            )
        if self.model and self.model.family == "lstm":
            raise Misfit(
                "it steps the matrices of a Transformer's blocks, and an LSTM has none: write "
                "optimizer: adamw",
                "pretraining.optimizer",
            )

    @property
    def split_seed(self) -> int:
        """Of every task's split by document."""
        return self.corpus.seed if self.corpus else 0

    @property
    def model_and_training(self) -> tuple[ModelShape, PretrainingSection]:
        """The shape of the model that is trained here, and how: of a recipe that imports none."""
        assert self.model and self.pretraining, "a recipe without `imported` has both"
        return self.model, self.pretraining

    def model_config_for(self, vocab_size: int | None = None) -> ModelConfig:
        """The whole model, with the vocabulary the tokenizer really has, or else the one the recipe
        asks for.
        """
        assert self.tokenizer, "a recipe without `imported` has one"
        return ModelConfig(
            **self.model_and_training[0].model_dump(),
            vocab_size=vocab_size or self.tokenizer.vocab_size,
        )


def whole_sequences(batch_tokens: int, context: int, field: str = "batch_tokens") -> None:
    """Raises ValueError where a batch is not a whole number of sequences."""
    if batch_tokens % context:
        raise ValueError(
            f"{field} {batch_tokens} is not a whole number of sequences of model.context "
            f"{context} tokens: "
            f"set it to {max(1, round(batch_tokens / context)) * context}"
        )


def load_recipe(name_or_path: str) -> Recipe:
    """A recipe by its name under recipes/ (here, or ours) or by path. Raises UserError naming file,
    line, field.
    """
    folders = here_and(RECIPES)
    files = extended(find_file(name_or_path, folders, "recipe"), folders)
    data, dial = dialled(files, merged)
    if dial and data.get("imported") is not None:
        with naming(list(files)):
            raise UserError(
                "It is of a model that is trained here, and an imported one has its own: leave "
                "depth out.",
                field="depth",
            )
    recipe = validate(Recipe, data, list(files))
    recipe._files, recipe._dial = tuple(files), dial
    return recipe
