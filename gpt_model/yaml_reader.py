"""YAML that a person wrote, as text, numbers, lists and mappings, whatever the file holds.

YAML can hang, crash or surprise whoever reads it: aliases of aliases that hold a billion values,
nesting that ends the process, tags that name Python types, `010` that means 8. Each is refused with
file and line. Numbers are YAML 1.2's where the two differ silently (2e-3), and a date is text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import yaml
from yaml.composer import Composer

from gpt_model.errors import UserError, shortened

DEPTH = 50  # mappings and lists inside one another: a recipe has six
REPEATED = 100_000  # values that aliases stand for, all together
BITS = 256  # of an integer; seeds have 64

_TAG = "tag:yaml.org,2002:"
_SCALARS = {
    f"{_TAG}null": "null",
    f"{_TAG}bool": "true or false",
    f"{_TAG}int": "an integer",
    f"{_TAG}float": "a number",
}
_KINDS = {**_SCALARS, f"{_TAG}str": "text", f"{_TAG}seq": "a list", f"{_TAG}map": "a mapping"}
_TEXT, _MERGE, _DATE = f"{_TAG}str", f"{_TAG}merge", f"{_TAG}timestamp"
_FLOAT = re.compile(
    r"[-+]?(?![0-9_]+$)(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?$"
)

# libyaml's parsers, where PyYAML has them: ten times faster. Their composer is C too, and ends the
# process where lists are nested deep.
_SAFE: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_BASE: Any = getattr(yaml, "CBaseLoader", yaml.BaseLoader)


class _Refused(yaml.MarkedYAMLError):
    """What this module refuses, by its own sentence."""

    def __init__(self, problem: str, mark: Any) -> None:
        super().__init__(problem=problem, problem_mark=mark)


class _Bounded:
    """Composes nodes within the bounds above."""

    def __init__(self, text: str) -> None:
        super().__init__(text)  # type: ignore[call-arg]  # the parser's
        self.anchors: dict[str, yaml.Node] = {}
        self._depth = self._nodes = self._repeated = 0
        self._sizes: dict[yaml.Node, int] = {}  # nodes in each whole one, aliases followed

    # PyYAML's, in Python, for the parsers in C
    get_single_node = Composer.get_single_node
    compose_document = Composer.compose_document
    compose_scalar_node = Composer.compose_scalar_node
    compose_sequence_node = Composer.compose_sequence_node
    compose_mapping_node = Composer.compose_mapping_node

    def compose_node(self: Any, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            node = Composer.compose_node(self, parent, index)
            if node not in self._sizes:
                raise _Refused("an alias stands for what it is in", event.start_mark)
            self._nodes += self._sizes[node]
            self._repeated += self._sizes[node]
            if self._repeated > REPEATED:
                problem = f"the aliases stand for more than {REPEATED:,} values"
                raise _Refused(problem, event.start_mark)
            return node
        if self._depth >= DEPTH:
            problem = f"more than {DEPTH} lists and mappings are inside one another"
            raise _Refused(problem, event.start_mark)
        before, self._depth, self._nodes = self._nodes, self._depth + 1, self._nodes + 1
        node = Composer.compose_node(self, parent, index)
        self._depth -= 1
        self._sizes[node] = self._nodes - before
        return node


class _Rows(_Bounded, _SAFE):
    """Data, as other programs wrote it."""


class _RowsOfText(_Bounded, _BASE):
    """Data whose every scalar is text."""


class _Settings(_Rows):
    """Settings: every mapping has text keys, each once, and every scalar means what it seems to."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        is_alias = self.check_event(yaml.AliasEvent)
        node = super().compose_node(parent, index)
        if is_alias:
            return node
        if node.tag == _DATE:
            node.tag = _TEXT
        if node.tag in _SCALARS and (problem := self._problem(node)):
            raise _Refused(problem, node.start_mark)
        if isinstance(node, yaml.MappingNode):
            _check_keys(node)
        if node.tag not in _KINDS and node.tag != _MERGE:
            problem = f"{_shown(node)} is no text, number, list or mapping: put it in quotes"
            raise _Refused(problem, node.start_mark)
        return node

    def _problem(self, node: yaml.ScalarNode) -> str | None:
        try:
            value = self.yaml_constructors[node.tag](self, node)
        except (ValueError, KeyError, IndexError):
            return f"{_shown(node)} is not {_SCALARS[node.tag]}: mend it, or put it in quotes"
        if isinstance(value, int) and value.bit_length() > BITS:
            return f"{_shown(node)} has more digits than any number here"
        if isinstance(value, float) and not math.isfinite(value):
            return f"{_shown(node)} is not finite, and every number here is"
        if ":" in node.value:
            return f'{node.value} is {value} in YAML: write {value}, or "{node.value}"'
        if re.fullmatch(r"[-+]?0[0-9_]+", node.value):
            decimal = int(node.value.replace("_", ""))
            if decimal != value:
                return (
                    f"{node.value} is octal in YAML, {value}: write {decimal} or {value}, or "
                    f'"{node.value}" if it is text'
                )
        return None


_Settings.add_implicit_resolver(f"{_TAG}float", _FLOAT, list("-+0123456789."))


def _check_keys(node: yaml.MappingNode) -> None:
    seen: set[str] = set()
    for key, _ in node.value:
        if key.tag not in (_TEXT, _MERGE):
            problem = f"{_shown(key)} is no text, as keys are: put it in quotes"
            raise _Refused(problem, key.start_mark)
        if key.value in seen:
            hint = ", or write one list: <<: [*a, *b]" if key.tag == _MERGE else ""
            raise _Refused(f"{_shown(key)} stands twice; keep one of them{hint}", key.start_mark)
        seen.add(key.value)


def _shown(node: yaml.Node) -> str:
    if isinstance(node, yaml.ScalarNode):
        return repr(shortened(node.value))
    return _KINDS.get(node.tag, node.tag)


def compose(text: str, where: str) -> yaml.Node | None:
    """The one document of `text`, each node with its line; None where it is empty. Raises UserError
    naming `where`, the file, and the line.
    """
    with _naming(where):
        return cast("yaml.Node | None", _Settings(text).get_single_node())


def load(text: str, where: str) -> Any:
    """A file of settings as Python's values. Raises UserError as `compose` does."""
    with _naming(where):
        return _Settings(text).get_single_data()


def load_rows(text: str, where: str, *, strings: bool = False) -> Any:
    """A file of data, which may have keys and tags that settings may not. `strings`: a scalar such
    as Yes or 42 stays text. Raises UserError as `compose` does.
    """
    with _naming(where):
        return (_RowsOfText if strings else _Rows)(text).get_single_data()


@contextmanager
def _naming(where: str) -> Iterator[None]:
    try:
        yield
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"{where}, line {mark.line + 1}" if mark else where
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or error
        refused = isinstance(error, _Refused)
        raise UserError(
            f"{line}: {problem}." if refused else f"{line}: this is not valid YAML ({problem})."
        ) from None
    # PyYAML's, of a scalar that is not what its tag or its spelling says
    except (ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
        raise UserError(f"{where}: this is not valid YAML ({error}).") from None
