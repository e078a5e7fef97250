"""The recipe's `experiments` section: which of the papers' experiments are made, and how large.
What each measures is its own module's.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Field

from gpt_model.strict import Strict


def _each_once(values: list[Any]) -> list[Any]:
    if twice := [value for number, value in enumerate(values) if value in values[:number]]:
        raise ValueError(f"{twice[0]!r} stands twice: take it out")
    return values


Count = Annotated[int, Field(ge=1)]
Each = AfterValidator(_each_once)


class VisibleContext(Strict):
    """Held-out bits per byte against the number of tokens a prediction sees."""

    contexts: Annotated[list[Count], Field(min_length=2), Each] | None = Field(
        default=None, description="default: the powers of two up to the model's context, and that"
    )
    positions: int = Field(
        default=1000,
        ge=2,
        description="held-out tokens of each source that are predicted, the same for every context",
    )
    seed: int = Field(default=0, ge=0)


class Depth(Strict):
    """Whole models of fewer and more layers, trained alike.

    The recipe's own depth is among them: its pre-trained model, or where `tokens` or more than one
    seed is given models of its own.
    """

    layers: Annotated[list[Count], Field(min_length=1), Each] = Field(
        description="each a model of its own, or one a seed"
    )
    tokens: Count | None = Field(
        default=None, description="each is trained on; default: pretraining.tokens"
    )
    seeds: Count = Field(
        default=1, description="models of each depth; the first has pretraining.seed"
    )


class ZeroShotDynamics(Strict):
    """GPT-1, figure 2 right: what a model can do that was only pre-trained, against how long it
    was, for the Transformer and an LSTM.
    """

    lstm: bool = Field(
        default=True, description="an LSTM of the same width, trained alike, beside it"
    )
    sentiment: str = Field(
        default="sst2", description="a task of two labels, the second the positive one"
    )
    acceptability: str = Field(
        default="cola",
        description="a task of two labels, the second acceptable; held_out: own sentences, half "
        "with two words swapped",
    )
    pronouns: str = Field(
        default="pronouns",
        description="a multiple_choice task whose question holds a pronoun, or a _ where it stood",
    )
    questions: str = Field(default="race", description="a multiple_choice task")
    examples: int = Field(default=500, ge=20, description="of each task, at most")


class _Finetunings(Strict):
    """How large an experiment is that fine-tunes many times. What is not given is as the section
    `finetuning` has it.
    """

    seeds: Count = Field(default=3, description="models of each kind")
    epochs: Count | None = None
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    examples: Count | None = Field(
        default=None, description="at most so many training examples of a task"
    )
    held_back: Annotated[int, Field(ge=2)] | None = Field(
        default=None, description="at most so many validation and so many test examples"
    )


class LayersTransferred(_Finetunings):
    """GPT-1, figure 2 left: a task's score against how many of the pre-trained layers are kept."""

    task: str = Field(description="one of finetuning.tasks")
    layers: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=2), Each] | None = Field(
        default=None, description="default: 0, 1, … all of them"
    )


class Ablations(_Finetunings):
    """GPT-1, table 5: without the auxiliary objective, without pre-training, and an LSTM in the
    Transformer's place.
    """

    tasks: Annotated[list[str], Field(min_length=1), Each] | None = Field(
        default=None, description="default: all of finetuning.tasks"
    )
    lstm: bool = Field(
        default=True, description="an LSTM of the same width, trained alike, as table 5's last row"
    )


class ExperimentsSection(Strict):
    """Each of them where its name is given."""

    layers_transferred: LayersTransferred | None = None
    ablations: Ablations | None = None
    visible_context: VisibleContext | None = None
    depth: Depth | None = None
    zero_shot_dynamics: ZeroShotDynamics | None = None
