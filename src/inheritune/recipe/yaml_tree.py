"""Read YAML text into plain values, and record the line of each."""

import re
from dataclasses import dataclass, field
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.composer import Composer
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.events import AliasEvent, NodeEvent
from ruamel.yaml.nodes import CollectionNode, MappingNode, Node, ScalarNode
from ruamel.yaml.reader import ReaderError

from inheritune.errors import RecipeError, escape

KeyPath = tuple[str | int, ...]

_MAX_DEPTH = 50
_MAX_VALUES = 20_000  # a second of parsing; the largest honest recipe has hundreds


@dataclass(frozen=True)
class Location:
    """The place and the form in which a value was written."""

    origin: str  # "file" or "--set"
    where: str  # "recipe.yaml, line 4" or "--set train.tokens=2M"
    line: int  # from 1; 0 for `--set`
    raw: str = ""  # a scalar as it was written, without its quotes; empty for lists and mappings
    quoted: bool = False  # true for a scalar in quotes, which YAML always reads as text


@dataclass
class Tree:
    """A parsed YAML document: plain values, and where each of them was written."""

    label: str  # file name or `--set` text, for messages
    value: Any = None  # mappings, lists, texts, numbers, booleans, dates and None
    places: dict[KeyPath, Location] = field(default_factory=dict)  # of each key and list item


def dotted(path: KeyPath) -> str:
    """Format a path as users write it: ``train.betas[0]``."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return escape(text.removeprefix("."), 120)


def read_tree(text: str, label: str, origin: str = "file", at: KeyPath = ()) -> Tree:
    """Read one YAML 1.2 document without aliases, anchors, tags or directives.

    Args:
        text: YAML; where ``origin`` is ``"--set"``, a scalar or a ``[...]`` or ``{...}`` value.
        label: File name or ``--set`` text, for messages.
        at: Path of the value itself; every recorded path begins with it.

    Returns:
        The tree; its value is None if there is no document.

    Raises:
        RecipeError: The YAML is invalid, has a duplicate key, is nested too deeply or is too
            large. The message names file and line.
    """
    reader = _Reader(label, origin)
    yaml = YAML(typ="safe", pure=True)
    yaml.Composer = _StrictComposer
    if directive := re.search(r"^%", text, re.MULTILINE):  # %YAML 1.1 reads `no` as false
        where = reader.where(text.count("\n", 0, directive.start()) + 1)
        raise RecipeError(f"{where}: YAML directives are not allowed.", "Remove the % line.")
    try:
        # Nodes, not values: only nodes know their lines.
        root = yaml.compose(text)
        if root is not None:
            reader.tree.value = reader.value(root, at)
    # --- name the line of what the parser could not read ---
    except _Refused as refusal:
        raise RecipeError(
            f"{reader.where(refusal.line)}: {refusal.problem}", refusal.hint
        ) from None
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise RecipeError(
            f"{reader.where(line)}: a control character or half a character.", "Remove it."
        ) from error
    except MarkedYAMLError as error:
        raise _explained(error, reader, label) from error
    except RecipeError:
        raise
    except Exception as error:
        # The parser answers some malformed input with a bare ValueError or AssertionError.
        message = f"{label}: not valid YAML: {escape(error)}."
        raise RecipeError(message, "Check its escapes.") from error
    return reader.tree


# Problems as the parser words them, and what they mean to whoever wrote the text.
_PROBLEMS = [
    (
        r"mapping values are not allowed",
        "a colon where no key can stand",
        "Check that the line above has its colon and begins in the same column; quote text that "
        "holds ': '.",
    ),
    (
        r"could not find expected ':'",
        "a key without a colon",
        "Write it like key: value.",
    ),
    (
        r"expected <block end>",
        "a line that is indented unlike those around it",
        "Begin all keys of a section in the same column, and all items of a list with '- '.",
    ),
    (r"\\t", "a tab where spaces were expected", "Indent with spaces instead of tabs."),
    (
        r"cannot start any token",
        "a value that begins with a sign that YAML reserves",
        "Quote the value.",
    ),
    (
        r"unexpected end of stream",
        "a quotation mark that is never closed",
        "Close it on the same line.",
    ),
    (r"expected ',' or '\]'", "a list without its end", "Expected here: a comma or ]."),
    (r"expected ',' or '\}'", "a mapping without its end", "Expected here: a comma or }."),
    (
        r"unknown escape character",
        "a backslash that begins no known escape",
        "Use single quotes, in which a backslash is a character like others.",
    ),
    (r"expected the node content", "a value was expected", "Write one, or null for none."),
    (r"single document", "another document begins", "Remove the line ---."),
]


def _explained(error: MarkedYAMLError, reader: "_Reader", label: str) -> RecipeError:
    """Word a problem of the parser with line, column and what was expected."""
    problem = error.problem or error.context or "cannot be read"
    full = f"{error.context} {problem}"
    words = next((known[1:] for known in _PROBLEMS if re.search(known[0], full)), None)
    mark = error.problem_mark or error.context_mark
    if "end of stream" in problem:  # the opening mark says more than the end of the file
        mark = error.context_mark or mark
    where = reader.where(mark.line + 1, mark.column + 1) if mark else label
    meaning, hint = words or (problem, "Check the indentation, colons and quotes around it.")
    return RecipeError(f"{where}: not valid YAML: {meaning}.", hint)


class _Refused(Exception):
    """YAML that is valid, but not allowed in a recipe."""

    def __init__(self, part: Any, problem: str, hint: str) -> None:
        self.line = part.start_mark.line + 1
        self.problem = problem
        self.hint = hint


class _StrictComposer(Composer):
    """Compose nodes, but refuse aliases, tags, depth and size before they cost memory."""

    def __init__(self, loader: Any = None) -> None:
        super().__init__(loader)
        self.depth = self.count = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.parser.peek_event()
        if isinstance(event, AliasEvent) or (isinstance(event, NodeEvent) and event.anchor):
            raise _Refused(event, "anchors and aliases are not allowed.", "Write the value out.")
        if event.ctag is not None:
            tag = escape(event.ctag, 60)
            raise _Refused(event, f"the tag {tag} is not allowed.", "Write a plain value.")
        self.count += 1
        if self.count > _MAX_VALUES:
            raise _Refused(event, f"more than {_MAX_VALUES:,} values.", "Shorten it.")
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise _Refused(event, f"nested more than {_MAX_DEPTH} deep.", "Make it flatter.")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Reader:
    """Turn composed nodes into plain values, and record their locations."""

    def __init__(self, label: str, origin: str) -> None:
        self.tree = Tree(label)
        self.origin = origin
        self.constructor = YAML(typ="safe", pure=True).constructor

    def where(self, line: int, column: int | None = None) -> str:
        if self.origin != "file":
            return self.tree.label
        in_line = "" if column is None else f", column {column}"
        return f"{self.tree.label}, line {line}{in_line}"

    def value(self, node: Node, path: KeyPath, key: Node | None = None) -> Any:
        # The line is the key's: a value may start lines below it.
        line = (key or node).start_mark.line + 1
        raw, quoted = "", False
        if isinstance(node, ScalarNode):
            raw, quoted = node.value, node.style is not None
        file_line = line if self.origin == "file" else 0
        self.tree.places[path] = Location(self.origin, self.where(line), file_line, raw, quoted)
        if isinstance(node, ScalarNode):
            return self.scalar(node)
        assert isinstance(node, CollectionNode)
        if self.origin == "--set" and not node.flow_style:
            problem = "the value is neither a scalar nor [...] nor {...}."
            raise _Refused(node, problem, "Quote it, if text is meant.")
        if isinstance(node, MappingNode):
            return self.mapping(node, path)
        return [self.value(item, (*path, index)) for index, item in enumerate(node.value)]

    def mapping(self, node: MappingNode, path: KeyPath) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = self.key(key_node, path)
            if key in values:
                first, line = self.tree.places[*path, key].line, key_node.start_mark.line + 1
                lines = f", in lines {first} and {line}" if first else ""
                problem = f"{dotted((*path, key))} stands twice{lines}."
                raise _Refused(key_node, problem, "Keep one of them.")
            values[key] = self.value(value_node, (*path, key), key_node)
        return values

    def key(self, node: Node, path: KeyPath) -> str:
        if not isinstance(node, ScalarNode):
            raise _Refused(node, "a key is a list or a mapping.", "Write text as the key.")
        value = self.scalar(node)
        if isinstance(value, str):
            return value
        inside = f" in {dotted(path)}" if path else ""
        raw = escape(node.value, 40)
        problem = f"the key {raw or '(empty)'}{inside} is read as {kind_of(value)}, not text."
        raise _Refused(node, problem, f'Quote it: "{raw}".')

    def scalar(self, node: ScalarNode) -> Any:
        if any("\ud800" <= c <= "\udfff" for c in node.value):
            raise _Refused(node, "half a character (a lone surrogate).", "Remove the escape.")
        try:
            return self.constructor.construct_object(node)
        except Exception:
            # Such as 2024-13-45, "=" or an integer of 5,000 digits.
            raw = escape(node.value, 40)
            problem = f"{raw} looks like a number, date or YAML sign, but cannot be read as one."
            raise _Refused(node, problem, "Quote it, if text is meant.") from None


def kind_of(value: object) -> str:
    """Name the type that YAML gave to a value, in words."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    kinds = {int: "a number", float: "a number", str: "text", list: "a list", dict: "a mapping"}
    return kinds.get(type(value), "a date")
