"""The reference pages, from the code: commands, keys of recipe and run.json, errors."""

import ast
import inspect
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import typer

import inheritune
from inheritune import errors
from inheritune.cli.app import app
from inheritune.data.file_kinds import WAYS_OUT, kinds
from inheritune.data.text_formats import COMPRESSIONS, FORMATS, UNREADABLE
from inheritune.model_files.foreign_layouts import LAYOUTS
from inheritune.model_files.quantisation import SCHEMES
from inheritune.model_files.wrappers import INNER, OUTER
from inheritune.recipe.load import recipe_schema
from inheritune.run_record.record import FORMAT, RunRecord

HERE = Path(__file__).parent
EXAMPLES = HERE / "reference" / "examples"  # by examples.py: each command as it was run
ERRORS = [
    name
    for name, value in vars(errors).items()
    if isinstance(value, type) and issubclass(value, errors.InherituneError)
]


def write() -> None:
    """Write the generated pages; unchanged ones keep their time."""
    for name, text in pages().items():
        path = HERE / "reference" / name
        if not path.is_file() or path.read_text("utf-8") != text:
            path.write_text(text, encoding="utf-8")


def pages() -> dict[str, str]:
    """Text of every generated page by its file name."""
    return {
        "commands.md": commands(),
        "recipe.md": recipe(),
        "run-record.md": run_record(),
        "errors.md": error_classes(),
        "messages.md": messages(),
        "text-formats.md": text_formats(),
        "model-formats.md": model_formats(),
    }


# -- formats of text


def text_formats() -> str:
    """Every format of text, by the endings of its files."""
    rows = [
        (", ".join(f"`{end}`" for end in f.endings if end) or "any other", f.name, f.documents)
        for f in FORMATS
        if f is not UNREADABLE
    ]
    refused = ", ".join(f"`{end}`" for end in UNREADABLE.endings)
    packed = ", ".join(f"`{end}`" for end in COMPRESSIONS)
    names = ", ".join(f.name for f in FORMATS if f.is_compressible)
    return (
        "# Formats of text\n\nThe ending of a name decides, in any case. "
        "See {doc}`../how-to/text-not-read`.\n\n"
        + _table(("ending", "format", "a document is"), rows)
        + f"\nThese may be compressed, and then end in {packed} as well: {names}. "
        f"Every other file that ends in {refused} is refused.\n\n"
        "## What a file is called, whatever its name\n\nBy its beginning:\n\n"
        + _table(("it is", "way out"), [(k, WAYS_OUT.get(k, "Leave it out")) for k in kinds()])
    )


# -- formats of models


def model_formats() -> str:
    """Layouts of other programs, ways to quantise and names of wrappers, each with its way out."""
    words = {"here": "MODEL", "path": "MODEL", "sign": "FILE", "inside": "FOLDER"}
    words |= {"newest": "FOLDER", "above": "PARENT", "name": "STEP"}
    layouts = [
        (
            layout.what.format(**words),
            ", ".join(f"`{sign}`" for sign in layout.signs if not sign.startswith("[")),
            layout.way_out.format(**words),
        )
        for layout in LAYOUTS
        if not layout.signs[0].startswith("[")
    ]
    schemes = [
        (
            scheme.name,
            ", ".join(f"`{sign}`" for sign in scheme.signs),
            "`inheritune convert MODEL OUT`" if scheme.converts else scheme.way_out.format(**words),
        )
        for scheme in SCHEMES
    ]
    wrappers = [(f"`{part}`", wrapper) for part, wrapper in (INNER | OUTER).items()]
    return (
        "# Formats of models\n\nReferences are read from `model.safetensors`, or from the files "
        "that `model.safetensors.index.json` names. See {doc}`../how-to/model-refused`.\n\n"
        "## Layouts of other programs\n\nA directory is recognised by the names in it, the first "
        "row that fits.\n\n" + _table(("MODEL", "names", "way out"), layouts) + "\n"
        "## Quantised weights\n\nNames and dtypes of tensors decide, not config.json. A matrix of "
        "integers called a weight is quantised under any name.\n\n"
        + _table(("way", "tensors end with", "way out"), schemes)
        + "\n## Names of wrappers\n\n`inheritune convert MODEL OUT` takes them off.\n\n"
        + _table(("in the names of tensors", "from"), wrappers)
    )


# -- commands


def commands() -> str:
    """Every command with its arguments and options."""
    group: Any = typer.main.get_command(app)
    parts = [
        "# Commands\n\nEach takes `--json` and then ends with one JSON value on stdout, errors "
        "included. Data goes to stdout, messages and progress to stderr. "
        "See {doc}`errors` for the exit codes.\n\nUnder each command stands an example and, with "
        "its output, one that was run on two CPU cores.\n"
    ]
    for name, command in group.commands.items():
        example = (command.epilog or "").removeprefix("Example: ")
        text = inspect.cleandoc(command.help or "")
        ran = (EXAMPLES / f"{name}.txt").read_text("utf-8")
        parts.append(
            f"## `inheritune {name}`\n\n{text}\n\n```\n{example}\n```\n\n```console\n{ran}```\n"
        )
        rows = [_parameter(p) for p in command.params if _is_shown(p)]
        if rows:
            parts.append(_table(("", "default", "what it is"), rows))
    own = [_parameter(p) for p in group.params if _is_shown(p)]
    parts.append("## `inheritune` alone\n\n" + _table(("", "default", "what it is"), own))
    return "\n".join(parts)


def _is_shown(parameter: Any) -> bool:
    return parameter.name != "help" and not getattr(parameter, "hidden", False)


def _parameter(parameter: Any) -> tuple[str, str, str]:
    if parameter.param_type_name == "argument":
        shown = f"`{(parameter.metavar or parameter.name).upper()}`"
    else:
        value = "" if getattr(parameter, "is_flag", False) else _metavar(parameter)
        shown = ", ".join(f"`{o}{value}`" for o in (*parameter.opts, *parameter.secondary_opts))
    default = parameter.default
    plain = default in (None, False, "", ()) or callable(default) or parameter.required
    said = "needed" if parameter.required else "" if plain else f"`{default}`"
    return shown, said, parameter.help or ""


def _metavar(parameter: Any) -> str:
    return f" {parameter.metavar or parameter.name.upper().replace('_', '-')}"


# -- recipe


def recipe() -> str:
    """Every key of a recipe, in the order of the file."""
    schema = recipe_schema()
    known = schema.get("$defs", {})
    parts = [
        "# Recipe keys\n\nA recipe is a YAML file; `inheritune init` prints a commented one, "
        "`inheritune init --schema` the JSON Schema. Amounts of tokens are integers or `K`, `M`, "
        "`B` (10^3, 10^6, 10^9). Any key can be set on the command line: "
        "`--set train.learning_rate=1e-4`. An unknown key is an error.\n"
    ]
    top = []
    for name, about in schema["properties"].items():
        section = _section(about, known)
        if section is None:
            top.append(_key(name, about))
            continue
        rows = list(_keys(section, known, _prefix(name, about)))
        text = section.get("description", "")
        parts.append(f"## `{name}`\n\n{_cell(text)}\n\n{_table(_KEY_HEADERS, rows)}")
    parts.insert(1, _table(_KEY_HEADERS, top))
    return "\n".join(parts)


_KEY_HEADERS = ("key", "default", "what it is")


def _prefix(name: str, about: dict[str, Any]) -> str:
    return f"{name}.NAME." if "additionalProperties" in about else f"{name}."


def _keys(
    section: dict[str, Any], known: dict[str, Any], prefix: str
) -> Iterator[tuple[str, str, str]]:
    for name, about in section.get("properties", {}).items():
        yield _key(prefix + name, about)
        inner = _section(about, known)
        if inner is not None:
            yield from _keys(inner, known, f"{prefix}{name}.")


def _section(about: dict[str, Any], known: dict[str, Any]) -> dict[str, Any] | None:
    """The mapping that a key holds, where it is one with keys of its own."""
    choices = [about, *about.get("anyOf", []), *about.get("allOf", [])]
    for inside in ("additionalProperties", "items"):
        choices += [c[inside] for c in choices if isinstance(c.get(inside), dict)]
    for choice in choices:
        found = known.get(choice.get("$ref", "").rpartition("/")[2])
        if found is not None and "properties" in found:
            return dict(found)
    return None


def _key(name: str, about: dict[str, Any]) -> tuple[str, str, str]:
    default = about.get("default", ...)
    simple = default is not ... and not isinstance(default, dict) and len(str(default)) < 60
    shown = f"`{json.dumps(default)}`" if simple else ""
    return f"`{name}`", shown, _cell(about.get("description", ""))


# -- run.json


def run_record() -> str:
    """Every field of run.json, from the type that writes and reads it."""
    schema = RunRecord.model_json_schema()
    parts = [
        f"# run.json\n\nThe record of a run, in format {FORMAT}. {{doc}}`run-directory` says where "
        "it lies. Every field may be missing: in a run that is not finished, or that an older "
        "version made. Readers take a value of the wrong kind for missing, and keep "
        "unknown fields. Losses are in nats per token.\n",
        _fields(schema),
    ]
    for name, section in schema["$defs"].items():
        parts.append(f"## {name}\n\n{_cell(section.get('description', ''))}\n\n{_fields(section)}")
    return "\n".join(parts)


def _fields(section: Mapping[str, Any]) -> str:
    rows = [
        (f"`{name}`", _kind(about), _cell(about.get("description", "")))
        for name, about in section["properties"].items()
    ]
    return _table(("field", "kind", "what it is"), rows)


def _kind(about: Mapping[str, Any]) -> str:
    """The JSON type of a field, with a link where it is a section of its own."""
    if "anyOf" in about:
        kinds = dict.fromkeys(_kind(choice) for choice in about["anyOf"])
        return " or ".join(kind for kind in kinds if kind not in ("null", "integer"))
    if "$ref" in about:
        name = about["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    inner = about.get("items") or about.get("additionalProperties")
    if isinstance(inner, dict) and inner:
        return f"{'list' if 'items' in about else 'mapping'} of {_kind(inner)}"
    return {"array": "list", "object": "mapping", "string": "text"}.get(
        about.get("type", ""), about.get("type", "any")
    )


# -- errors


def error_classes() -> str:
    """Exit codes, and the classes of errors that end with them."""
    rows = []
    for name in ERRORS:
        kind = getattr(errors, name)
        if kind is not errors.InherituneError:
            said = _cell(inspect.cleandoc(kind.__doc__ or ""))
            rows.append((str(kind.exit_code), f"`{name}`", said))
    own = [
        ("0", "", "Done. For `run`: matched, or no growing was asked for."),
        ("1", "`Bug`", "Our mistake: the traceback is in `inheritune-error.log`."),
        ("2", "`UsageError`", "The command line is wrong: unknown option, missing argument."),
        (str(errors.NOT_MATCHED_EXIT_CODE), "", "Not matched: an outcome. Results are complete."),
        ("130, 143", "", "Ended at once by a second Ctrl-C or SIGTERM."),
    ]
    table = _table(("exit code", "`error` in JSON", "what it means"), sorted(own + rows, key=_code))
    return (
        "# Exit codes and errors\n\nAn error is one line on stderr, `error: WHAT. WAY OUT`, "
        "without a traceback unless `--debug` is given. With `--json`, stdout has an object, "
        "too:\n\n"
        '```json\n{"error": "RecipeError", "message": "what, with its value", "hint": "way out"}'
        f"\n```\n\n{table}"
    )


# -- messages


def messages() -> str:
    """Every message that an error is raised with, by class: what is fixed in it and what is not."""
    parts = [
        "# Error messages\n\nWhat happened, then *the way out*. A word in capitals stands for a "
        "value; … for what is put together elsewhere. {doc}`errors` has the exit codes. What is "
        "wrong in a recipe is said in one way for all keys: `FILE, line LINE: KEY is VALUE. It "
        "must ...`, `KEY is missing (what it is).` or `KEY is not a key. Did you mean ...?`\n"
    ]
    found: dict[str, set[tuple[str, str]]] = {}
    for path in sorted(Path(inheritune.__file__).parent.rglob("*.py")):
        for name, message in _raised(ast.parse(path.read_text("utf-8"))):
            found.setdefault(name, set()).add(message)
    for name in sorted(found):
        code = getattr(errors, name).exit_code
        lines = [
            f"- {_plain(what)}" + (f" *{_plain(way_out)}*" if way_out else "")
            for what, way_out in sorted(found[name], key=lambda pair: pair[0].casefold())
        ]
        parts.append(f"## `{name}`, exit code {code}\n\n" + "\n".join(lines) + "\n")
    return "\n".join(parts)


def _raised(tree: ast.Module) -> Iterator[tuple[str, tuple[str, str]]]:
    """Classes of errors that a module makes, with message and hint as far as they are fixed."""
    constants = {
        target.id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args):
            continue
        if node.func.id in set(ERRORS) - {"InherituneError"}:
            what, way_out = ([_template(a, constants) for a in node.args] + [""])[:2]
            if re.search(r"[a-z]{2}", what):  # else all of it is put together elsewhere
                yield node.func.id, (what, "" if way_out == "…" else way_out)


def _template(node: ast.expr, constants: Mapping[str, object]) -> str:
    """A text with a word in capitals for each value."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_template(part, constants) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        return _template(node.value, constants)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        of_numbers = isinstance(node.right, ast.Constant) and not isinstance(node.right.value, str)
        between = " + " if of_numbers else ""
        return between.join(_template(part, constants) for part in (node.left, node.right))
    if isinstance(node, ast.IfExp):
        either = [_template(part, constants) for part in (node.body, node.orelse)]
        return " / ".join(part for part in either if part)
    if isinstance(node, ast.Name) and isinstance(constants.get(node.id), str):
        return str(constants[node.id])
    return _value(node)


def _value(node: ast.expr) -> str:
    """What a value is called in the code, as a word in capitals."""
    if isinstance(node, ast.Call) and node.args:  # such as escape(path)
        return _value(node.args[0])
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):  # name.lower()
        return _value(node.func.value)
    if isinstance(node, ast.Subscript):
        return _value(node.value)
    if isinstance(node, ast.BoolOp):
        return _value(node.values[0])
    name = node.id if isinstance(node, ast.Name) else getattr(node, "attr", "…")
    return {"strerror": "reason"}.get(name, name).strip("_").replace("_", "-").upper()


def _plain(text: str) -> str:
    """A text of which nothing is taken for Markdown."""
    return re.sub(r"([\\`*_{}\[\]<>#|~$@!])", r"\\\1", " ".join(text.split()))


def _code(row: tuple[str, str, str]) -> tuple[int, str]:
    return int(row[0].partition(",")[0]), row[1]


def _table(headers: tuple[str, ...], rows: list[tuple[str, str, str]]) -> str:
    lines = [headers, tuple("---" for _ in headers), *rows]
    cells = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in cells) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.replace("<", "&lt;").split())
