"""The nodes of a recipe's `alignment` section, each after what it needs.

    pretrained ─┬─► supervised ─┬─► reward_model ─┬─► instructed           ─┐
                │               └─────────────────┼─► (its last epoch)     ─┤
                └─► policy_init ──────────────────┼─► aligned, without_ptx ─┼─► preferences
                                                  └─► dpo                  ─┘

Demonstrations, comparisons and prompts come before them, and zero_shot_after/<model> after each.
The reward model starts from the pre-trained model or from the last supervised epoch, and
`instructed` is the epoch it prefers: so there is no circle.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from assets.contract import Config, Stage
from assets.node import Node
from assets.recipe.recipe import Recipe
from assets.recipe.sections import (
    AlignmentSection,
    ComparisonsSection,
    PPOSection,
    PreferencesSection,
)
from assets.recipe.yaml_file import stem
from assets.stages.alignment import (
    ALIGNED,
    DPO,
    INSTRUCTED,
    JUDGE,
    POLICY_INIT,
    PREFERENCES,
    REWARD_MODEL,
    SUPERVISED,
)
from assets.stages.human_data import COMPARISONS, DEMONSTRATIONS, PROMPTS
from assets.stages.zero_shot import ZERO_SHOT, zero_shot_config
from gpt_model.errors import UserError
from gpt_model.strict import Strict

SECTION = "alignment"  # the recipe's
Roles = tuple[tuple[str, str], ...]
# The models whose zero-shot scores are compared with the pre-trained model's: the alignment tax.
TUNED = ("supervised", "instructed", "policy_init", "aligned_without_ptx", "aligned", "dpo")
# What `preferences` reads, where the recipe has it.
COMPARED = (
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


def alignment_nodes(recipe: Recipe, present: set[str], roles: Roles) -> list[Node]:
    """No node where the recipe has no such section. `present`: the names of the nodes before these;
    `roles` as `Node` has them.
    """
    if recipe.alignment is None:
        return []
    _check_corpus(recipe.alignment, present)
    graph: list[Node] = []
    names = set(present)
    for node in _Nodes(recipe, recipe.alignment, roles).in_order():
        needs = tuple(need for need in node.needs if node.asset(need) in names)
        graph.append(replace(node, needs=needs))
        names.add(node.name)
    return [*graph, *_zero_shot_nodes(recipe, recipe.alignment, names, roles)]


def _check_corpus(section: AlignmentSection, present: set[str]) -> None:
    """Raises UserError where pre-training text is mixed in and there is none."""
    mixed = {
        "policy_init.pretraining_share": (section.ppo or section.dpo)
        and section.policy_init
        and section.policy_init.pretraining_share,
        "ppo.ptx_weight": section.ppo and section.ppo.ptx_weight,
    }
    for field, weight in mixed.items():
        if weight and "tokens" not in present:
            raise UserError(
                "It mixes pre-training text in, and this recipe has no corpus: add one, or set it "
                "to 0.",
                field=f"{SECTION}.{field}",
            )


@dataclass(frozen=True)
class _Nodes:
    """Nodes with every input that their stages can read, those that the recipe lacks among them."""

    recipe: Recipe
    section: AlignmentSection
    roles: Roles

    def in_order(self) -> Iterator[Node]:
        yield from self.human_data()
        base = ("pretrained", "tokenizer", "demonstrations")
        if self.section.supervised:
            yield self._tuned(SUPERVISED, self.section.supervised, *base)
        if self.section.comparisons:
            yield from self.judges(self.section.comparisons)
        if self.section.policy_init and (self.section.ppo or self.section.dpo):
            yield self._tuned(POLICY_INIT, self.section.policy_init, *base, "tokens")
        if self.section.ppo:
            yield from self.policies(self.section.ppo)
        if self.section.dpo:
            yield self._tuned(DPO, self.section.dpo, "policy_init", "comparisons")
        tuned = self.section.supervised or self.section.ppo or self.section.dpo
        if self.section.prompts and self.section.preferences and tuned:
            yield self._tuned(PREFERENCES, self.section.preferences, *COMPARED)

    def human_data(self) -> Iterator[Node]:
        if self.section.demonstrations:
            yield self._data(DEMONSTRATIONS, self.section.demonstrations)
        if self.section.comparisons:
            yield self._data(COMPARISONS, self.section.comparisons)
        if self.section.prompts:
            yield self._data(PROMPTS, self.section.prompts, "demonstrations", "comparisons")

    def judges(self, comparisons: ComparisonsSection) -> Iterator[Node]:
        """The reward model, the judge that sees none of its texts, and the epoch it prefers."""
        section = self.section.reward_model
        if section:
            start = dict(self.roles).get(section.start, section.start)
            needs = ("start", "tokenizer", "demonstrations", "comparisons")
            node = self._tuned(REWARD_MODEL, section, *needs)
            yield replace(node, roles=(*self.roles, ("start", start)))
        if comparisons.judge:
            yield self._node(JUDGE, {}, "comparisons")
        if self.section.prompts and section and self.section.supervised and self.section.instructed:
            sampling = (self.section.preferences or PreferencesSection()).model_dump(
                mode="json", include={"prompts", "max_new_tokens", "temperature", "seed"}
            )
            sampling["precision"] = self.section.supervised.precision  # its epochs'
            inputs = ("supervised", "reward_model", "prompts")
            yield self._node(INSTRUCTED, {"instructed": sampling}, *inputs)

    def policies(self, ppo: PPOSection) -> Iterator[Node]:
        """PPO-ptx, and PPO without pre-training text."""
        needs = ("policy_init", "reward_model", "prompts", "tokens")
        yield self._node(ALIGNED, {"ppo": _plain(ppo)}, *needs)
        if self.section.without_ptx and ppo.ptx_weight:
            without = ppo.model_copy(update={"ptx_weight": 0.0, "ptx_examples": 0})
            yield replace(
                self._node(ALIGNED, {"ppo": _plain(without)}, *needs),
                name="aligned_without_ptx",
                description=f"{ALIGNED.description} Without pre-training text.",
            )

    def _data(self, stage: Stage, section: Strict, *needs: str) -> Node:
        config = {**_plain(section), "split_seed": self.recipe.split_seed}
        return replace(self._node(stage, config, *needs), field=f"{SECTION}.{stage.name}")

    def _tuned(self, stage: Stage, section: Strict, *needs: str) -> Node:
        return self._node(stage, {stage.name: _plain(section)}, *needs)

    def _node(self, stage: Stage, config: dict[str, Any], *needs: str) -> Node:
        """Of the stage's name. Its errors name fields of the whole section."""
        return Node(
            self.recipe.name,
            stage.name,
            stage,
            lambda base: config,
            needs,
            self.roles,
            field=SECTION,
        )


def _zero_shot_nodes(
    recipe: Recipe, section: AlignmentSection, present: set[str], roles: Roles
) -> Iterator[Node]:
    """The suites of `alignment.preferences.suites`, else the recipe's own, on each tuned model."""
    if recipe.evaluation is None or not section.zero_shot_after:
        return
    evaluation = recipe.evaluation
    suites = section.preferences.suites if section.preferences else []
    if suites:
        names = [stem(suite) for suite in suites]
        examples = {suite: n for suite, n in evaluation.examples.items() if suite in names}
        files = {
            name: file for name, file in evaluation.files.items() if name.split("/")[0] in names
        }
        changed = {"suites": suites, "examples": examples, "files": files, "known": None}
        evaluation = evaluation.model_copy(update=changed)
    changed_recipe = recipe.model_copy(update={"evaluation": evaluation})

    def config(base: Path) -> Config:
        try:
            return zero_shot_config(changed_recipe, base)
        except UserError as error:
            if suites and error.field:
                ours = f"{SECTION}.preferences.suites"
                error.field = error.field.replace("evaluation.suites", ours, 1)
            raise

    needs = ("pretrained", "tokenizer", "corpus", "tokens")
    for model in (name for name in TUNED if name in present):
        who = {**dict(roles), "pretrained": model}
        yield Node(
            recipe.name,
            f"zero_shot_after/{model}",
            ZERO_SHOT,
            config,
            tuple(need for need in needs if who.get(need, need) in present),
            tuple(who.items()),
            field="evaluation",
            description=f"{ZERO_SHOT.description} Of {model}.",
        )


def _plain(section: Strict) -> dict[str, Any]:
    return section.model_dump(mode="json")
