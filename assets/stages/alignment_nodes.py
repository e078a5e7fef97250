"""The nodes of a recipe's `alignment` section, each after what it needs.

    pretrained ─┬─► supervised ─┬─► reward_model ─┬─► instructed           ─┐
                │               └─────────────────┼─► (its last epoch)     ─┤
                └─► policy_init ──────────────────┼─► aligned, without_ptx ─┼─► preferences, zero_shot_after/<model>
                                                  └─► dpo                  ─┘

with demonstrations, comparisons and prompts before them. The reward model starts from the
pre-trained model or from the last supervised epoch, and `instructed` is the epoch it prefers: so
there is no circle.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from assets.contract import Config, Stage
from assets.node import Node
from assets.recipe.alignment_section import AlignmentSection, ComparisonsSection
from assets.recipe.recipe import Recipe
from assets.stages.aligned import ALIGNED
from assets.stages.dpo import DPO
from assets.stages.human_data import COMPARISONS, DEMONSTRATIONS, PROMPTS
from assets.stages.instructed import INSTRUCTED
from assets.stages.judge import JUDGE
from assets.stages.preferences import PREFERENCES
from assets.stages.reward_model import REWARD_MODEL
from assets.stages.supervised import POLICY_INIT, SUPERVISED
from assets.stages.zero_shot import ZERO_SHOT, zero_shot_config
from gpt_model.errors import UserError
from gpt_model.strict import Strict

SECTION = "alignment"  # the recipe's
Roles = tuple[tuple[str, str], ...]
TAXED = (
    "supervised",
    "instructed",
    "policy_init",
    "aligned_without_ptx",
    "aligned",
    "dpo",
)  # what the alignment tax is looked for in


def alignment_nodes(recipe: Recipe, there: set[str], roles: Roles) -> list[Node]:
    """`there`: the names of the nodes before these, and `roles` who is what to them. None where the
    recipe has no such section.
    """
    if recipe.alignment is None:
        return []
    return _Graph(recipe, recipe.alignment, there, roles).made()


class _Graph:
    """What the nodes share while they are made."""

    def __init__(
        self, recipe: Recipe, section: AlignmentSection, there: set[str], roles: Roles
    ) -> None:
        self.recipe, self.section, self.there, self.roles = recipe, section, set(there), roles
        self.nodes: list[Node] = []

    def made(self) -> list[Node]:
        self._check_text()
        self._human_data()
        self._tuned(
            "supervised",
            SUPERVISED,
            self.section.supervised,
            "pretrained",
            "tokenizer",
            "demonstrations",
        )
        if self.section.comparisons:
            self._judges(self.section.comparisons)
        if self.section.ppo or self.section.dpo:
            self._tuned(
                "policy_init",
                POLICY_INIT,
                self.section.policy_init,
                "pretrained",
                "tokenizer",
                "demonstrations",
                "tokens",
            )
        if ppo := self.section.ppo:
            self._aligned("aligned", ppo, "")
            if self.section.without_ptx and ppo.ptx_weight:
                without = ppo.model_copy(update={"ptx_weight": 0.0, "ptx_examples": 0})
                self._aligned("aligned_without_ptx", without, " Without pre-training text.")
        if self.section.dpo:
            self._tuned("dpo", DPO, self.section.dpo, "policy_init", "comparisons")
        self._compared()
        return self.nodes

    def _human_data(self) -> None:
        self._data("demonstrations", DEMONSTRATIONS, self.section.demonstrations)
        if self.section.comparisons:
            self._data("comparisons", COMPARISONS, self.section.comparisons)
        if self.section.prompts:
            self._data("prompts", PROMPTS, self.section.prompts, "demonstrations", "comparisons")

    def _judges(self, comparisons: ComparisonsSection) -> None:
        """The reward model, the judge that never sees what it was trained on, and the epoch that
        the reward model prefers.
        """
        section = self.section.reward_model
        start = (
            dict(self.roles).get("pretrained", "pretrained")
            if section.start == "pretrained"
            else "supervised"
        )
        needs = ("start", "tokenizer", "demonstrations", "comparisons")
        self._add(
            "reward_model",
            REWARD_MODEL,
            {"reward_model": _plain(section)},
            *needs,
            roles=(("start", start),),
        )
        if comparisons.judge:
            self._add("judge", JUDGE, {}, "comparisons")
        if self.section.prompts:
            asked = self.section.preferences.model_dump(
                mode="json", include={"prompts", "max_new_tokens", "temperature", "seed"}
            )
            of = ("supervised", "reward_model", "prompts")
            self._add("instructed", INSTRUCTED, {"instructed": asked}, *of)

    def _check_text(self) -> None:
        """Raises UserError where pre-training text is asked for and there is none."""
        wanted = {
            "policy_init.pretraining_share": (self.section.ppo or self.section.dpo)
            and self.section.policy_init.pretraining_share,
            "ppo.ptx_weight": self.section.ppo and self.section.ppo.ptx_weight,
        }
        for field, value in wanted.items():
            if value and "tokens" not in self.there:
                told = "It mixes pre-training text in, and this recipe has no corpus: add one, or set it to 0."
                raise UserError(told, field=f"{SECTION}.{field}")

    def _add(
        self,
        name: str,
        stage: Stage,
        config: dict[str, Any],
        *needs: str,
        roles: Roles = (),
        field: str = SECTION,
        described: str = "",
    ) -> None:
        """`field`: where the fields stand that the stage's errors name; most know those of the
        whole section.
        """
        who = {**dict(self.roles), **dict(roles)}
        present = tuple(need for need in needs if who.get(need, need) in self.there)
        node = Node(
            self.recipe.name,
            name,
            stage,
            lambda base: config,
            present,
            tuple(who.items()),
            field=field,
            description=described,
        )
        self.nodes.append(node)
        self.there.add(name)

    def _data(self, name: str, stage: Stage, section: Strict, *needs: str) -> None:
        self._add(
            name,
            stage,
            {**_plain(section), "split_seed": self.recipe.split_seed},
            *needs,
            field=f"{SECTION}.{name}",
        )

    def _tuned(self, name: str, stage: Stage, section: Strict, *needs: str) -> None:
        self._add(name, stage, {name: _plain(section)}, *needs)

    def _aligned(self, name: str, section: Strict, told: str) -> None:
        needs = ("policy_init", "reward_model", "prompts", "tokens")
        self._add(
            name,
            ALIGNED,
            {"ppo": _plain(section)},
            *needs,
            described=f"{ALIGNED.description}{told}",
        )

    def _compared(self) -> None:
        """What every model there is is compared by."""
        if self.section.prompts:
            needs: tuple[str, ...] = (
                "pretrained",
                "tokenizer",
                "supervised",
                "instructed",
                "policy_init",
                "aligned",
                "aligned_without_ptx",
                "dpo",
                "reward_model",
                "judge",
                "prompts",
                "comparisons",
                "demonstrations",
                "tokens",
            )
            self._add(
                "preferences",
                PREFERENCES,
                {"preferences": _plain(self.section.preferences)},
                *needs,
            )
        if self.recipe.evaluation is None:
            return
        evaluation = self.recipe.evaluation
        if chosen := self.section.preferences.suites:
            limits = {
                suite: limit for suite, limit in evaluation.examples.items() if suite in chosen
            }
            files = {
                place: file
                for place, file in evaluation.files.items()
                if place.split("/")[0] in chosen
            }
            evaluation = evaluation.model_copy(
                update={"suites": chosen, "examples": limits, "files": files, "known": None}
            )
        recipe = self.recipe.model_copy(update={"evaluation": evaluation})

        def section(base: Path) -> Config:
            try:
                return zero_shot_config(recipe)
            except UserError as error:
                if chosen and error.field:  # which suites there are was said here
                    error.field = error.field.replace(
                        "evaluation.suites", f"{SECTION}.preferences.suites", 1
                    )
                raise

        for model in (one for one in TAXED if one in self.there):
            self._add(
                f"zero_shot_after/{model}",
                ZERO_SHOT,
                {},
                "pretrained",
                "tokenizer",
                "corpus",
                "tokens",
                roles=(("pretrained", model),),
                field="evaluation",
                described=f"{ZERO_SHOT.description} Of {model}.",
            )
            self.nodes[-1] = replace(self.nodes[-1], section=section)


def _plain(section: Strict) -> dict[str, Any]:
    return section.model_dump(mode="json")
