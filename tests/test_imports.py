"""The import law and the forbidden calls, read from the syntax tree of every source file."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "inheritune"
FILES = sorted(PACKAGE.rglob("*.py"))

# The floors of the house: a package imports from lower floors only, never from its own floor.
FLOORS = [
    {"errors"},
    {"system"},
    {"run_record"},
    {"model_files", "recipe", "run_directory"},
    {"surgery", "data"},
    {"conversion", "training"},
    {"analysis", "evaluation", "repair"},
    {"reporting", "steps", "verification"},
    {"planning", "publishing"},
    {"run"},
    {"api"},
    {"cli"},
    {"__main__"},
]
FLOOR = {package: floor for floor, packages in enumerate(FLOORS) for package in packages}

SLOW = {"torch", "transformers"}
# These packages load torch when they are imported; importing any other must not.
HEAVY = {"analysis", "evaluation", "repair", "training"}
# Rooms whose work the commands have done by the API; they may import types of their results.
WORKING = {
    *("analysis", "conversion", "data", "evaluation", "model_files", "planning", "publishing"),
    *("repair", "run", "steps", "surgery", "training", "verification"),
}
SHOWN = {
    "inheritune.cli.model": {"inheritune.surgery.selection"},  # the grammar of layers, for help
    "inheritune.cli.doctor": {"inheritune.training.hardware"},  # flags of the processor
    "inheritune.cli.plan_answers": {
        *("inheritune.surgery.selection", "inheritune.planning.candidates"),
        *("inheritune.model_files.training_memory", "inheritune.planning.recipe_plan"),
    },
    "inheritune.cli.fitness": {"inheritune.model_files.training_memory"},
    "inheritune.cli.plan_text": {
        *("inheritune.model_files.config", "inheritune.surgery.selection"),
        *("inheritune.planning.candidates", "inheritune.model_files.training_memory"),
        *("inheritune.planning.recipe_plan", "inheritune.planning.trainings"),
        "inheritune.planning.cluster",
    },
}
TYPING_ONLY = {"TYPE_CHECKING", "typing.TYPE_CHECKING"}

PRINTING = {"inheritune.cli.app", "inheritune.cli.console", "inheritune.cli.terminal"}
UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
UNSAFE_BUILTINS = {"eval", "exec", "__import__"}
# The one file that may read a pickle, weights only, in a process that can do nothing else.
ALLOWED = {"inheritune.conversion.unpickle": {"torch.load"}}
UNSAFE_CALLS = {
    "torch.load",
    "torch.save",
    "yaml.load",
    "yaml.unsafe_load",
    "os.system",
    "os.popen",
}
UNSAFE_ARGUMENTS = {"trust_remote_code", "shell", "allow_pickle"}
NAMES_THAT_SAY_NOTHING = {"utils", "util", "common", "helpers", "helper", "base", "misc"}


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): ast.parse(path.read_text("utf-8"), str(path)) for path in FILES}


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def statements(node: ast.AST, at_import: bool, for_typing: bool) -> Iterator[ast.AST]:
    """Every node below `node`; with `at_import`, only what runs when the module is imported;
    without `for_typing`, nothing that only type checkers read."""
    for child in ast.iter_child_nodes(node):
        if at_import and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if not for_typing and isinstance(child, ast.If) and ast.unparse(child.test) in TYPING_ONLY:
            yield from (n for s in child.orelse for n in (s, *statements(s, at_import, False)))
            continue
        yield child
        yield from statements(child, at_import, for_typing)


@cache
def imports(module: str, at_import: bool, for_typing: bool | None = None) -> list[tuple[str, int]]:
    """What a module imports, as full dotted names with the line; names imported from a package
    count as modules where such a module exists."""
    for_typing = not at_import if for_typing is None else for_typing
    found = []
    for node in statements(MODULES[module], at_import, for_typing):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: write the full name, not a dot"
            source = node.module or ""
            for alias in node.names:
                name = f"{source}.{alias.name}"
                found.append((name if name in MODULES else source, node.lineno))
    return found


def ours(module: str, at_import: bool, for_typing: bool | None = None) -> Iterator[tuple[str, int]]:
    found = imports(module, at_import, for_typing)
    return ((name, line) for name, line in found if name.split(".")[0] == "inheritune")


@pytest.mark.parametrize("module", MODULES)
def test_modules_import_only_from_lower_floors(module):
    if not room(module):  # the package itself: for type checkers, the names of the API
        assert {name for name, _ in ours(module, at_import=False)} <= {"inheritune.api"}
        assert not [*ours(module, at_import=True)]
        return
    assert room(module) in FLOOR, f"{module} has no floor: give it one in FLOORS and AGENTS.md"
    for name, line in ours(module, at_import=False):
        if room(name) in {"", room(module)}:  # "": the package itself, for __version__
            continue
        assert FLOOR[room(name)] < FLOOR[room(module)], f"{module}:{line} imports {name}"


def test_no_import_goes_round_in_a_circle():
    finished: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path, module))
        if module in finished or module not in MODULES:
            return
        for name, _ in ours(module, at_import=True):
            visit(name, (*path, module))
        finished.add(module)

    for module in MODULES:
        visit(module, ())


@pytest.mark.parametrize("module", [m for m in MODULES if room(m) == "cli"])
def test_commands_have_their_work_done_by_the_api(module):
    for name, line in ours(module, at_import=False, for_typing=False):
        assert room(name) not in WORKING or name in SHOWN.get(module, ()), (
            f"{module}:{line} imports {name}: call a function of inheritune.api"
        )


@pytest.mark.parametrize("module", [m for m in MODULES if room(m) not in HEAVY])
def test_importing_these_modules_loads_neither_torch_nor_transformers(module):
    seen: dict[str, str] = {module: module}  # module -> how it was reached
    waiting = [module]
    while waiting:
        current = waiting.pop()
        for name, line in imports(current, at_import=True):
            assert name.split(".")[0] not in SLOW, f"{seen[current]}:{line} imports {name}"
            if name in MODULES and name not in seen:
                seen[name] = f"{seen[current]} -> {name}"
                waiting.append(name)


@pytest.mark.parametrize("command", [["--help"], ["run", "--help"], ["no-such-command"]])
def test_help_and_typos_answer_without_loading_torch_or_transformers(command):
    program = (
        "import sys\n"
        f"sys.argv = ['inheritune', *{command!r}]\n"
        "from inheritune.cli.app import main\n"
        "try:\n"
        "    main()\n"
        "finally:\n"
        "    print(sorted({'torch', 'transformers'} & sys.modules.keys()), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == "[]", done.stderr
    assert done.returncode == (2 if command == ["no-such-command"] else 0)


@pytest.mark.parametrize("module", MODULES)
def test_only_the_command_line_prints(module):
    if module in PRINTING:
        return
    for node in ast.walk(MODULES[module]):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "print", f"{module}:{node.lineno} prints"


@pytest.mark.parametrize("module", MODULES)
def test_source_files_call_nothing_that_runs_foreign_code(module):
    for name, line in imports(module, at_import=False):
        assert name.split(".")[0] not in UNSAFE_MODULES, f"{module}:{line} imports {name}"
    for node in ast.walk(MODULES[module]):
        if not isinstance(node, ast.Call):
            continue
        where = f"{module}:{node.lineno}: {ast.unparse(node)}"
        called = ast.unparse(node.func)
        assert called not in (UNSAFE_BUILTINS | UNSAFE_CALLS) - ALLOWED.get(module, set()), where
        if called == "torch.load":
            assert "weights_only=True" in ast.unparse(node), where
        for argument in node.keywords:
            true = isinstance(argument.value, ast.Constant) and argument.value.value is True
            assert not (argument.arg in UNSAFE_ARGUMENTS and true), where


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_files_are_named_after_what_they_know(path):
    assert not NAMES_THAT_SAY_NOTHING & {path.stem, path.parent.name}


@pytest.mark.parametrize("module", MODULES)
def test_every_module_says_what_it_is(module):
    assert ast.get_docstring(MODULES[module]), f"{module} has no docstring"


@pytest.mark.parametrize(
    "path",
    [p for p in FILES if p.name == "__init__.py" and p.parent not in (PACKAGE, PACKAGE / "api")],
    ids=lambda path: path.relative_to(PACKAGE).as_posix(),
)
def test_package_files_hold_a_docstring_only(path):
    # A function re-exported here would shadow the module of the same name. The package's own file
    # and that of the API hold the public names, see tests/test_api.py.
    assert len(ast.parse(path.read_text("utf-8")).body) == 1
