"""YAML text to plain values: limits hold before anything is built, every value keeps its place."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.events import (
    AliasEvent,
    CollectionStartEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    NodeEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.reader import ReaderError

from inheritune.errors import RecipeError, escape

__all__ = ["KeyPath", "Place", "Tree", "dotted", "kind_of", "read_tree"]

KeyPath = tuple[str | int, ...]

_MAX_DEPTH = 50
_MAX_VALUES = 20_000  # a second of parsing; the largest honest recipe has hundreds


@dataclass(frozen=True)
class Place:
    """Where a value was written, and how.

    Attributes:
        origin: ``"file"`` or ``"--set"``.
        where: ``"recipe.yaml, line 4"`` or ``"--set train.tokens=2M"``.
        line: From 1; 0 for ``--set``.
        raw: A scalar as it was written, without its quotes; empty for lists and mappings.
        quoted: Whether the scalar had quotes, so that YAML did not look for a number in it.
    """

    origin: str
    where: str
    line: int
    raw: str = ""
    quoted: bool = False


@dataclass
class Tree:
    """Plain values and the place of each.

    Attributes:
        label: File name or ``--set`` text, for messages.
        value: Mappings, lists, texts, numbers, booleans, dates and None.
        places: One for each key and list item, by its path from the top.
    """

    label: str
    value: Any = None
    places: dict[KeyPath, Place] = field(default_factory=dict)


def dotted(path: KeyPath) -> str:
    """A path as it is written: ``train.betas[0]``."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return escape(text.removeprefix("."), 120)


def read_tree(text: str, label: str, origin: str = "file", at: KeyPath = ()) -> Tree:
    """Read one YAML 1.2 document without aliases, anchors, tags or directives.

    Args:
        text: YAML; at most a scalar or a ``[...]`` or ``{...}`` value when ``origin`` is
            ``"--set"``.
        label: File name or ``--set`` text, for messages.
        origin: ``"file"`` or ``"--set"``.
        at: Path of the value itself, in front of every path that is recorded.

    Returns:
        The tree; its value is None when there is no document.

    Raises:
        RecipeError: Broken or duplicate or too deep or too many, with file and line.
    """
    return _Builder(label, origin).build(text, at)


class _Builder:
    """Builds values straight from parser events, so that a bomb is refused while it is small."""

    def __init__(self, label: str, origin: str) -> None:
        self.tree = Tree(label)
        self.origin = origin
        self.yaml = YAML(typ="safe", pure=True)
        self.count = 0

    def build(self, text: str, at: KeyPath) -> Tree:
        self.events = self.parse(text)
        for event in self.events:
            if not isinstance(event, DocumentStartEvent):
                continue  # start and end of stream and document
            if event.version not in {None, (1, 2)} or event.tags:
                raise self.error(event, "YAML directives are not allowed.", "Remove the % line.")
            if self.count:
                raise self.error(event, "a second document starts here.", "Keep one.")
            self.tree.value = self.node(next(self.events), at, 1)
        return self.tree

    def parse(self, text: str) -> Iterator[Event]:
        try:
            yield from self.yaml.parse(text)
        except ReaderError as error:
            line = text.count("\n", 0, error.position) + 1
            raise RecipeError(
                f"{self.where(line)}: a control character or half a character.", "Remove it."
            ) from error
        except MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            where = self.where(mark.line + 1) if mark else self.tree.label
            problem = error.problem or error.context or "cannot be read"
            way_out = "Check the indentation, colons and quotes around it."
            if "\\t" in problem:
                way_out = "Indent with spaces instead of tabs."
            raise RecipeError(f"{where}: not valid YAML: {problem}.", way_out) from error
        except Exception as error:
            # The parser answers some malformed input with a bare ValueError or AssertionError.
            raise RecipeError(
                f"{self.tree.label}: not valid YAML: {escape(error)}.", "Check its escapes."
            ) from error

    def node(self, event: Event, path: KeyPath, depth: int) -> Any:
        self.count += 1
        self.check(event, depth)
        if isinstance(event, ScalarEvent):
            self.place(event, path, event.value, quoted=event.style is not None)
            return self.scalar(event)
        assert isinstance(event, CollectionStartEvent)
        if self.origin == "--set" and not event.flow_style:
            raise self.error(
                event, "the value is neither a scalar nor [...] nor {...}.", "Quote it, if text."
            )
        self.place(event, path)
        if isinstance(event, SequenceStartEvent):
            return self.sequence(path, depth)
        return self.mapping(path, depth)

    def check(self, event: Event, depth: int) -> None:
        if isinstance(event, AliasEvent) or (isinstance(event, NodeEvent) and event.anchor):
            raise self.error(event, "anchors and aliases are not allowed.", "Write the value out.")
        if isinstance(event, ScalarEvent | CollectionStartEvent) and event.ctag is not None:
            tag = escape(event.ctag, 60)
            raise self.error(event, f"the tag {tag} is not allowed.", "Write a plain value.")
        if depth > _MAX_DEPTH:
            raise self.error(event, f"nested more than {_MAX_DEPTH} deep.", "Make it flatter.")
        if self.count > _MAX_VALUES:
            raise self.error(event, f"more than {_MAX_VALUES:,} values.", "Shorten it.")

    def sequence(self, path: KeyPath, depth: int) -> list[Any]:
        items: list[Any] = []
        while not isinstance(event := next(self.events), SequenceEndEvent):
            items.append(self.node(event, (*path, len(items)), depth + 1))
        return items

    def mapping(self, path: KeyPath, depth: int) -> dict[str, Any]:
        values: dict[str, Any] = {}
        while not isinstance(event := next(self.events), MappingEndEvent):
            self.count += 1
            self.check(event, depth)
            key = self.key(event, path)
            line = event.start_mark.line + 1
            if key in values:
                first = self.tree.places[*path, key].line
                lines = f", in lines {first} and {line}" if first else ""
                text = f"{dotted((*path, key))} stands twice{lines}."
                raise self.error(event, text, "Keep one of them.")
            # The line of the key: a value may start lines below it.
            value = self.node(next(self.events), (*path, key), depth + 1)
            place = self.tree.places[*path, key]
            self.place(event, (*path, key), place.raw, quoted=place.quoted)
            values[key] = value
        return values

    def key(self, event: Event, path: KeyPath) -> str:
        if not isinstance(event, ScalarEvent):
            raise self.error(event, "a key is a list or a mapping.", "Write text as the key.")
        value = self.scalar(event)
        if isinstance(value, str):
            return value
        inside = f" in {dotted(path)}" if path else ""
        raw = escape(event.value, 40)
        text = f"the key {raw or '(empty)'}{inside} is read as {kind_of(value)}, not text."
        raise self.error(event, text, f'Quote it: "{raw}".')

    def scalar(self, event: ScalarEvent) -> Any:
        if any("\ud800" <= c <= "\udfff" for c in event.value):
            raise self.error(event, "half a character (a lone surrogate).", "Remove the escape.")
        try:
            tag = self.yaml.resolver.resolve(ScalarNode, event.value, event.implicit)
            return self.yaml.constructor.construct_object(ScalarNode(tag, event.value))
        except Exception as error:
            # Such as 2024-13-45, "=" or an integer of 5,000 digits: a number or date to YAML,
            # but not one that exists.
            raw = escape(event.value, 40)
            text = f"{raw} looks like a number, date or YAML sign, but cannot be read as one."
            raise self.error(event, text, "Quote it, if text is meant.") from error

    def place(self, event: Event, path: KeyPath, raw: str = "", *, quoted: bool = False) -> None:
        line = event.start_mark.line + 1 if self.origin == "file" else 0
        self.tree.places[path] = Place(self.origin, self.where(line), line, raw, quoted)

    def where(self, line: int) -> str:
        return f"{self.tree.label}, line {line}" if self.origin == "file" else self.tree.label

    def error(self, event: Event, message: str, hint: str) -> RecipeError:
        return RecipeError(f"{self.where(event.start_mark.line + 1)}: {message}", hint)


def kind_of(value: object) -> str:
    """What YAML made of a scalar, in words."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "text"
    if isinstance(value, list):
        return "a list"
    return "a mapping" if isinstance(value, dict) else "a date"
