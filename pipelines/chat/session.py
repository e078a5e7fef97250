"""Whom a person talks with and how answers are sampled. No torch: the models are engine.py's.

With two models both answer the same dialogue, and it continues with one answer: so a vote compares
answers to one prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from assets.recipe.recipe import RECIPES, Recipe, load_recipe
from assets.recipe.yaml_file import here_and, named_files, read_yaml
from assets.store.store import SHORT, Store
from gpt_model.errors import UserError
from gpt_model.rlhf import votes
from gpt_model.rlhf.chat_template import ChatTemplate
from gpt_model.tokenizer import Tokenizer
from pipelines.models import model_folder

BOUNDS = {
    "temperature": "0 or more",
    "top_p": "above 0, at most 1",
    "top_k": "0 (all) or more",
    "max_new_tokens": "1 or more",
    "seed": "0 or more",
}


@dataclass(frozen=True)
class Sampling:
    """How the tokens of an answer are sampled. The names are in the file of votes, too."""

    temperature: float = 0.7
    top_p: float = 1.0
    top_k: int = 0  # 0: all
    max_new_tokens: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises UserError for a number out of its bounds."""
        within = {
            "temperature": self.temperature >= 0,
            "top_p": 0 < self.top_p <= 1,
            "top_k": self.top_k >= 0,
            "max_new_tokens": self.max_new_tokens >= 1,
            "seed": self.seed >= 0,
        }
        for name, holds in within.items():
            if not holds:
                raise UserError(
                    f"{name} is {getattr(self, name)}, and should be {BOUNDS[name]}.", field=name
                )

    def updated(self, assignments: Sequence[str]) -> Sampling:
        """Changed by `temperature=0.7`, `top_p=0.9` and so on. Raises UserError."""
        types = {field.name: float if field.type == "float" else int for field in fields(self)}
        changes: dict[str, Any] = {}
        for assignment in assignments:
            name, _, value = assignment.partition("=")
            if name not in types:
                raise UserError(
                    f"There is no setting {name!r}: there are {', '.join(types)}. "
                    "Write /settings temperature=0.7 top_p=0.9"
                )
            try:
                changes[name] = types[name](value)
            except ValueError:
                raise UserError(f"{name} is a number, and {value!r} is none.") from None
        return replace(self, **changes)

    def __str__(self) -> str:
        return "  ".join(f"{name}={value}" for name, value in asdict(self).items())


@dataclass(frozen=True)
class Partner:
    """A model to talk with: the artifact's name, its fingerprint and its model folder."""

    ref: str
    fingerprint: str
    folder: Path
    template: ChatTemplate = field(compare=False, repr=False)

    @property
    def label(self) -> str:
        short = self.fingerprint[:SHORT]
        return short if self.ref == short else f"{self.ref} {short}"


def find_partners(store: Store, names: Sequence[str]) -> list[Partner]:
    """The artifacts called `names`, one or two. Raises UserError as `find_partner`, or where both
    are one model.
    """
    partners = [find_partner(store, name) for name in names]
    if len({partner.fingerprint for partner in partners}) < len(partners):
        raise UserError(
            f"{partners[0].label} is both models: give two different ones to vote between, or one."
        )
    return partners


def find_partner(store: Store, name: str) -> Partner:
    """The artifact called `name`, by that name; by its first one where `name` is the start of a
    fingerprint.

    Raises UserError for an artifact without a model, or whose model only continues text.
    """
    artifact = store.resolve(name)
    folder = model_folder(store, artifact)
    refs = [ref for ref, fingerprint in store.refs().items() if fingerprint == artifact.fingerprint]
    requested = name.strip().strip("/")
    ref = requested if requested in refs else next(iter(refs), artifact.fingerprint[:SHORT])
    try:
        return Partner(ref, artifact.fingerprint, folder, ChatTemplate(Tokenizer.load(folder)))
    except UserError as error:
        raise UserError(f"{ref}: {error}") from None


def votes_summary(home: Path) -> str:
    """How many votes the store has, and the recipe that trains on them."""
    rows = votes.read(home)
    summary = (
        f"Votes: {len(rows)}, of which ties: {sum(vote.tie for vote in rows)}. "
        f"They are in {home / votes.FILE}"
    )
    refs = sorted({ref for vote in rows for ref in vote.refs.values()})
    return f"{summary}\n{votes_recipe(refs)}" if rows else summary


def votes_recipe(refs: Sequence[str]) -> str:
    """A sentence on the recipe that trains on the votes between these models: the one that built
    them, or one that extends it, before any other.
    """
    built_by = {ref.partition("/")[0] for ref in refs}
    candidates: list[tuple[int, str, Recipe]] = []
    for name, path in named_files(here_and(RECIPES)).items():
        try:
            recipe = load_recipe(str(path))
        except UserError:
            continue  # `gpt-lineage list` and Dagster report a recipe that cannot be read
        if not _takes_votes(recipe):
            continue
        extended = {read_yaml(file).get("name", file.stem) for file in recipe.files[1:]}
        distance = 0 if recipe.name in built_by else 1 if built_by & extended else 2
        candidates.append((distance, name, recipe))
    if not candidates:
        return (
            "No recipe here trains on votes: add {name: votes, votes: true} to the sources of "
            "alignment.comparisons in one."
        )
    _, name, recipe = min(candidates, key=lambda candidate: candidate[:2])
    return f"The recipe {recipe.name} trains on the votes of this store: gpt-lineage run {name}"


def _takes_votes(recipe: Recipe) -> bool:
    comparisons = recipe.alignment.comparisons if recipe.alignment else None
    return comparisons is not None and any(source.votes for source in comparisons.sources)
