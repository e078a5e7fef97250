"""The one dial: `depth: N` at a recipe's top level sets its model's layers, width and heads, and
learning rate, batch and tokens.

What it sets it sets as the recipe is read, so that an artifact is identified by the numbers and
never by the dial. It leads from the recipe that this one extends, where that has a model and its
training, else from GPT-3 small (`gpt_model/sizing.py` has the rules). What is written beside the
dial stands, and the rest follows it.

    depth: 8
    depth: {layers: 8, rules: rules.yaml}    # `experiments/scaling` fits such rules to a ladder
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from assets.recipe.yaml_file import load_strict, naming, validate
from gpt_model.config import PUBLISHED, ModelConfig
from gpt_model.errors import UserError, about
from gpt_model.sizing import Rules, counted, scaled_settings, sized
from gpt_model.strict import Layers, Strict, explanation

WARMUP = 0.01  # share of the tokens, where no recipe gives one: ours, no paper's
Contents = dict[str, Any]
Merge = Callable[[Contents, Contents], Contents]


class DepthSection(Strict):
    """The one dial, `depth`, written out."""

    layers: Layers
    rules: str | None = Field(
        default=None, description="a YAML file of rules, as seen from the recipe"
    )


class _Dialled(BaseModel):
    depth: DepthSection


@dataclass(frozen=True)
class Dial:
    """What a recipe's dial has set, by field ("model.width"), and where it led from."""

    layers: int
    rules: str
    set: dict[str, Any]


def merged(files: Mapping[Path, Contents], merge: Merge) -> tuple[Contents, Dial | None]:
    """Recipes' files, nearest first, merged into one, and what the nearest dial among them set.
    Raises UserError naming file and field.
    """
    paths = list(files)
    dialled = next((index for index, path in enumerate(paths) if "depth" in files[path]), None)
    if dialled is None:
        return _all([files[path] for path in reversed(paths)], merge), None
    base, _ = merged({path: files[path] for path in paths[dialled + 1 :]}, merge)
    over = [
        {k: v for k, v in files[path].items() if k != "depth"}
        for path in reversed(paths[: dialled + 1])
    ]
    given = files[paths[dialled]]["depth"]
    depth = validate(
        _Dialled,
        {"depth": given if isinstance(given, dict) else {"layers": given}},
        [paths[dialled]],
    ).depth
    beside = _all(over, merge)
    if (layers := _part(beside, "model").get("layers")) not in (None, depth.layers):
        with naming(paths):
            raise UserError(
                f"{layers} layers here and depth {depth.layers} contradict each other: leave one "
                "of them out.",
                field="model.layers",
            )
    with naming([paths[dialled]]), about("depth"):
        rules, origin = _rules(depth, base, paths[dialled].parent)
        try:
            numbers = _numbers(depth.layers, rules, base, beside, _all(over, merge, base))
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            # something it reads is of a wrong kind or missing; that is said when the whole is read
            numbers = {}
    defaults = {
        section: {k: v for k, v in fields.items() if k not in _part(beside, section)}
        for section, fields in numbers.items()
    }
    by_field = {
        f"{section}.{name}": value
        for section, fields in defaults.items()
        for name, value in fields.items()
    }
    return _all(over, merge, merge(base, defaults)), Dial(depth.layers, origin, by_field)


def _all(contents: list[Contents], merge: Merge, base: Contents | None = None) -> Contents:
    """Each of `contents` merged over what is before it."""
    return reduce(merge, contents, base or {})


def _part(contents: Contents, section: str) -> Contents:
    """A section as far as it is one: what is wrong with it is said when the whole is read."""
    part = contents.get(section)
    return part if isinstance(part, dict) else {}


def _rules(depth: DepthSection, base: Contents, folder: Path) -> tuple[Rules, str]:
    """The rules that hold, and where they are from."""
    if depth.rules is not None:
        return load_strict(
            Rules, str(folder / depth.rules), [folder], "rules"
        ), f"the rules in {depth.rules}"
    if {"model", "pretraining"} <= base.keys():
        try:
            known = ModelConfig(**base["model"], vocab_size=_vocabulary(base))
            return Rules.of(known, base["pretraining"]), f"the recipe {base.get('name')}"
        except (ValidationError, KeyError, TypeError):
            pass  # it is no whole recipe; what is wrong with it is said when the whole is read
    return Rules(), "GPT-3 small (table 2.1) and 20 tokens a parameter (Hoffmann et al. 2022)"


def _vocabulary(data: Contents) -> int:
    tokenizer = _part(data, "tokenizer")
    released = PUBLISHED["gpt1" if tokenizer.get("style") == "gpt1" else "gpt2-small"]
    return int(tokenizer.get("vocab_size", released.vocab_size))


def _numbers(
    layers: int, rules: Rules, base: Contents, beside: Contents, written: Contents
) -> dict[str, Contents]:
    """The fields the dial sets, by section. Width and heads, batch and tokens that stand beside it
    are what the others follow.
    """
    shaped = {
        k: v for k, v in _part(written, "model").items() if k not in ("layers", "width", "heads")
    }
    shape, trained = _part(beside, "model"), _part(beside, "pretraining")
    given = {k: v for k, v in shape.items() if k in ("width", "heads")}
    fixed: Contents = {"context": PUBLISHED["gpt2-small"].context, **shaped, **given}
    try:
        size = sized(rules, layers, {**fixed, "vocab_size": _vocabulary(written)})
    except ValidationError as error:
        problem = error.errors()[0]
        what = f"model.{'.'.join(map(str, problem['loc']))}: " if problem["loc"] else ""
        raise UserError(
            f"it makes no model of what is written beside it: {what}{explanation(problem)}."
        ) from None
    batch, tokens = trained.get("batch_tokens", size.batch_tokens), trained.get("tokens")
    if tokens is None:
        tokens = max(1, round(rules.tokens_per_parameter * counted(size.model) / batch)) * batch
    rate = trained.get("learning_rate", size.learning_rate)
    scaled = (
        scaled_settings(base["pretraining"], tokens, batch, size.model.context, rate)
        if {"tokens", "batch_tokens"} <= _part(base, "pretraining").keys()
        else {"warmup_tokens": round(WARMUP * tokens)}
    )
    model = {
        "layers": size.model.layers,
        "width": size.model.width,
        "heads": size.model.heads,
        "context": size.model.context,
    }
    return {
        "model": {k: v for k, v in model.items() if k != "context" or "context" not in shaped},
        "pretraining": {
            "tokens": tokens,
            "batch_tokens": batch,
            "learning_rate": size.learning_rate,
            **scaled,
        },
    }
