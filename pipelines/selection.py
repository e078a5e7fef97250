"""Which assets of a recipe a person means, in Dagster's asset selection syntax.

The recipe's own names stand for its assets: `pretrained+`, `+scorecard`, `finetuned/*`, `zero_shot
or kind:deepspeed`, `not experiments/*`.
"""

from __future__ import annotations

import difflib
import fnmatch
import re
import warnings
from collections.abc import Sequence

import dagster as dg
from dagster._core.definitions.asset_selection import AssetSelection

from assets.node import Node
from gpt_model.errors import UserError

# An attribute with its value (kind:deepspeed), or a word that may be the name of an asset.
WORD = re.compile(r'(?P<attribute>\w+:(?:"[^"]*"|[^\s()+]+))|"[^"]*"|[A-Za-z_*][\w./*-]*')
OPERATORS = ("and", "or", "not", "sinks", "roots", "*")
HINT = "Dagster's syntax is read: pretrained+, +scorecard, 1+zero_shot, finetuned/*, A or B, not A"


def selected(text: str, graph: Sequence[Node], definitions: dg.Definitions) -> list[Node]:
    """The nodes of `graph` that `text` selects, in their order. `definitions`: the recipe's.

    Raises UserError where it cannot be read, names no asset of the recipe, or selects none.
    """
    recipe = graph[0].recipe
    names = [node.name for node in graph]
    with_keys = _with_keys(text, recipe, names)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", dg.BetaWarning)  # of Dagster's own calls
            selection = AssetSelection.from_string(with_keys)
            keys = selection.resolve(definitions.resolve_asset_graph())
    except (dg.DagsterError, NotImplementedError):
        raise UserError(f"--select {text!r} cannot be read. {HINT}.") from None
    nodes = [node for node in graph if dg.AssetKey(node.key) in keys]
    if not nodes:
        raise UserError(
            f"--select {text!r} selects no asset of {recipe}. It has: {', '.join(names)}."
        )
    return nodes


def _with_keys(text: str, recipe: str, names: Sequence[str]) -> str:
    """`text` with the recipe's names as Dagster's keys: pretrained+ -> key:"tiny/pretrained"+."""

    def key(match: re.Match[str]) -> str:
        word = match[0]
        if match["attribute"] and not word.startswith("key:"):
            return word
        if word in OPERATORS:
            return word
        name = word.removeprefix("key:").strip('"').removeprefix(f"{recipe}/")
        if not fnmatch.filter(names, name):
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"Did you mean {near[0]}? " if near else ""
            raise UserError(
                f"--select {text!r}: {recipe} has no asset {name!r}. {hint}"
                f"It has: {', '.join(names)}."
            )
        return f'key:"{recipe}/{name}"'

    return WORD.sub(key, text.replace(",", " or "))  # as `dagster asset materialize` takes it
