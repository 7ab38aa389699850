"""What is written in a recipe and on the command line: YAML as people mean it, and the line of each
key.

    read(text, where)       data and lines of a file
    value(text, where)      what an override sets

Numbers are YAML 1.2's (`1e-5` is one; PyYAML reads a text there), times and dates are texts. What
YAML 1.1 and 1.2 read differently (`yes`, `no`, `on`, `off`, `010`) is refused with its line, like a
repeated key, a value that no JSON holds, and aliases that grow without bound.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from core.errors import UserError

Keys = tuple[str, ...]

COMMAND_LINE = "command line"
"""Where an override was written."""
MOST_LETTERS = 500_000
"""Characters of one file: PyYAML reads some 100,000 a second."""
MOST_VALUES = 100_000
"""Values of one file, with what its aliases repeat."""
DEEPEST = 100
"""Levels of one value inside another."""
LARGEST = 2**63
"""Whole numbers from here on fit no file of ours."""
UNSURE = re.compile(r"yes|no|on|off", re.IGNORECASE)
OCTAL = re.compile(r"[-+]?0[0-9_]+")
_YAML = "tag:yaml.org,2002:"
PLAIN = tuple(f"{_YAML}{kind}" for kind in ("str", "int", "float", "bool", "null", "map", "seq"))


class _Reader(yaml.SafeLoader):
    """PyYAML with the scalars of YAML 1.2's core schema (and `1_000`)."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - as PyYAML declares it

    def whole(self, node: yaml.ScalarNode) -> int:
        """A whole number: decimal, 0x1f or 0o17."""
        text = str(self.construct_scalar(node)).replace("_", "").lower()
        try:
            number = int(text, 0 if re.match(r"[-+]?0[xo]", text) else 10)
        except ValueError:
            raise _problem(node, f"`{_short(node.value)}` is no number that can be read") from None
        if abs(number) >= LARGEST:
            raise _problem(node, f"`{_short(node.value)}` is too large a number")
        return number

    def fraction(self, node: yaml.ScalarNode) -> float:
        """A number with a point or an exponent."""
        text = str(self.construct_scalar(node)).replace("_", "").lower()
        try:
            number = float(text.replace(".inf", "inf").replace(".nan", "nan"))
        except ValueError:
            raise _problem(node, f"`{_short(node.value)}` is no number that can be read") from None
        if not math.isfinite(number):
            raise _problem(node, f"`{_short(node.value)}` is not a finite number")
        return number


def _resolve(kind: str, form: str, first: str) -> None:
    _Reader.add_implicit_resolver(f"{_YAML}{kind}", re.compile(rf"^(?:{form})$"), list(first))


_resolve("bool", "true|True|TRUE|false|False|FALSE", "tTfF")
_resolve("null", "~|null|Null|NULL|", "~nN\0")
_Reader.add_implicit_resolver(f"{_YAML}null", re.compile(r"^$"), [""])
_resolve("int", r"[-+]?[0-9]+(?:_[0-9]+)*|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789")
_resolve(
    "float",
    r"[-+]?(?:[0-9]+(?:_[0-9]+)*(?:\.[0-9_]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
    "-+0123456789.",
)
_resolve("merge", "<<", "<")
_Reader.add_constructor(f"{_YAML}int", _Reader.whole)
_Reader.add_constructor(f"{_YAML}float", _Reader.fraction)


def _problem(node: yaml.Node, what: str) -> yaml.MarkedYAMLError:
    return yaml.constructor.ConstructorError(None, None, what, node.start_mark)


def _short(text: object) -> str:
    said = str(text)
    return said if len(said) <= 40 else f"{said[:37]}..."


@dataclass
class _Walk:
    """One look at every node of a document before anything is made of it."""

    lines: dict[Keys, int] = field(default_factory=dict)
    seen: int = 0

    def look(self, node: yaml.Node, at: Keys, above: tuple[int, ...]) -> None:
        """Note the lines of a node's keys. Raises YAMLError for what is refused."""
        self.seen += 1
        if id(node) in above:
            raise _problem(node, "an alias (*) stands inside what it names")
        if self.seen > MOST_VALUES:
            raise _problem(node, f"with its aliases the file has more than {MOST_VALUES:,} values")
        if len(above) > DEEPEST:
            raise _problem(node, f"values are nested more than {DEEPEST} deep")
        if node.tag not in PLAIN and node.tag != f"{_YAML}merge":
            raise _problem(node, f"`{node.tag.replace(_YAML, '!!')}` is no tag for a recipe")
        for keys, inner in self._inside(node, at):
            self.look(inner, keys, (*above, id(node)))
        if isinstance(node, yaml.ScalarNode):
            _sure(node)

    def _inside(self, node: yaml.Node, at: Keys) -> Iterator[tuple[Keys, yaml.Node]]:
        """The values inside a node, each with its path."""
        if isinstance(node, yaml.SequenceNode):
            for number, inner in enumerate(node.value):
                yield (*at, str(number)), inner
        if not isinstance(node, yaml.MappingNode):
            return
        mine: set[str] = set()
        for key, inner in node.value:
            name = self._key(key)
            if name in mine:
                raise _problem(key, f"`{'.'.join((*at, name))}` is written twice")
            mine.add(name)
            if key.tag == f"{_YAML}merge":
                yield at, inner
                continue
            self.lines[*at, name] = key.start_mark.line + 1
            yield (*at, name), inner

    def _key(self, key: yaml.Node) -> str:
        if not isinstance(key, yaml.ScalarNode):
            raise _problem(key, "a key is one word, not a list or mapping")
        _sure(key)
        if key.tag not in (f"{_YAML}str", f"{_YAML}merge"):
            raise _problem(key, f"the key `{_short(key.value)}` is no text; put it in quotes")
        return str(key.value)


def _sure(node: yaml.ScalarNode) -> None:
    """Raise YAMLError for a scalar that readers of YAML disagree about, and for a text that no file
    can hold."""
    text = str(node.value)
    if node.style is None and node.tag == f"{_YAML}str" and UNSURE.fullmatch(text):
        raise _problem(
            node, f"`{text}` is read in two ways; write true or false, or put the text in quotes"
        )
    if node.style is None and node.tag in PLAIN[1:3] and OCTAL.fullmatch(text):
        raise _problem(
            node,
            f"`{_short(text)}` is read in two ways; write it without the leading 0, or in quotes "
            "for the text",
        )
    if "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
        raise _problem(node, "a text holds a character that no file can hold (NUL or a surrogate)")


def read(text: str, where: str) -> tuple[Any, dict[Keys, int]]:
    """The value of a YAML document, and the line of each key. Raises UserError with `where`, line
    and remedy."""
    if len(text) > MOST_LETTERS or _flow_depth(text) > DEEPEST:
        raise UserError(
            f"{where}: a recipe has at most {MOST_LETTERS:,} characters, and values nested "
            f"{DEEPEST} deep."
        )
    try:
        reader = _Reader(text)
        node = reader.get_single_node()
        if node is None:
            return None, {}
        walk = _Walk()
        walk.look(node, (), ())
        return reader.construct_document(node), walk.lines
    except RecursionError:
        raise UserError(f"{where}: values are nested too deeply to be read.") from None
    except yaml.YAMLError as error:
        raise UserError(f"{_place(where, error)}: {_said(error)}.") from error


def _flow_depth(text: str) -> int:
    """How many brackets are open at most: PyYAML takes minutes over some thousands."""
    deepest = depth = 0
    for letter in re.findall(r"[\[\]{}]", text):
        depth = max(0, depth + (1 if letter in "[{" else -1))
        deepest = max(deepest, depth)
    return deepest


def value(text: str, where: str) -> Any:
    """What an override sets; Raises UserError, which begins with `where`."""
    return read(text, where)[0]


def _place(where: str, error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    if where.startswith("override ") or mark is None:
        return where
    return f"{where}:{mark.line + 1}"


def _said(error: yaml.YAMLError) -> str:
    """What is wrong: our own sentence, or what the parser says, on one line."""
    if isinstance(error, yaml.constructor.ConstructorError) and error.context is None:
        return str(error.problem)
    if isinstance(error, yaml.reader.ReaderError):
        letter = error.character if isinstance(error.character, int) else ord(error.character)
        return f"the character U+{letter:04X} cannot stand in YAML; remove it"
    problem = getattr(error, "problem", None) or str(error)
    context = getattr(error, "context", None)
    said = f"{context}: {problem}" if context else str(problem)
    return f"not valid YAML ({' '.join(said.split())})"
