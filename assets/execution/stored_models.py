"""The models that a stage reads and does not train: whole on every rank, or shared out among the
ranks (ZeRO 3), where no rank ever has all of one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from assets.contract import Progress
from assets.estimate import has_whole_models
from assets.execution.tuning import execution_of
from gpt_model import convert
from gpt_model.rlhf import reward_model
from gpt_model.rlhf.reward_model import RewardModel
from gpt_model.training.engine import PREPARATION, Execution, join_without_training, start
from gpt_model.training.optimizer import TrainingSettings
from gpt_model.training.sharded import for_evaluation
from gpt_model.training.sharded_build import build_sharded
from gpt_model.transformer import GPT, Decoder


@dataclass(frozen=True)
class StoredModels:
    """Reads stored models, on the device and in evaluation mode. Collective where not `whole`: all
    ranks read the same ones in the same order, and make passes within `sharded.reading`.
    """

    execution: Execution
    whole: bool

    def decoder(self, folder: Path) -> Decoder:
        """A model that `convert.save` wrote."""
        return for_evaluation(self._read(folder), self.execution.device)

    def gpt(self, folder: Path) -> GPT:
        """The same. Raises UserError where it is no GPT."""
        return for_evaluation(self._read_gpt(folder), self.execution.device)

    def reward_model(self, folder: Path) -> RewardModel:
        """One that `reward_model.save` wrote. Raises UserError as `reward_model.load` does."""
        model = reward_model.load(folder, self._read_gpt)
        return for_evaluation(model, self.execution.device)

    def _read_gpt(self, folder: Path) -> GPT:
        return convert.require_gpt(self._read(folder), folder)

    def _read(self, folder: Path) -> Decoder:
        if self.whole:
            return convert.load_decoder(folder)
        settings = TrainingSettings(steps=0, learning_rate=lambda step: 0.0)  # nothing is trained
        shape = convert.shape(folder)
        return build_sharded(shape, settings, self.execution, settings.seed, folder)


def join_to_evaluate(stage: str, folders: Iterable[Path], progress: Progress) -> StoredModels:
    """Join the other ranks, as it takes to read the models in `folders`, all that the stage reads.
    Below ZeRO 3 that is without DeepSpeed. Collective.
    """
    execution = execution_of(progress)
    largest = max(map(convert.shape, folders), key=lambda shape: shape.parameters())
    whole = has_whole_models(stage, largest, progress.profile)
    if whole:
        join_without_training(execution)
    else:
        start(execution, PREPARATION)
    return StoredModels(execution, whole)
