"""Files are written by `system/files.py`, or into a directory that it made for staging."""

import ast

import pytest
from test_imports import MODULES

# Modules that write in another way, and why nobody meets half of what they write.
WRITERS = {
    "system.files": "the one module",
    # Into a staging directory, which takes its name when everything in it is whole.
    "conversion.convert": "staging",
    "conversion.rewrite": "staging, in the confined process",
    "conversion.write_tensors": "staging, exclusively",
    "evaluation.task_files": "a directory that is there for one evaluation",
    "model_files.copy": "staging, exclusively",
    "model_files.write": "staging, exclusively",
    "steps.controls": "staging",
    "steps.reference_store": "staging",
    "surgery.half_width": "staging, exclusively",
    "training.checkpoint_files": "staging",
    # Additions to a file, cut back to what the journal or manifest says when they are taken up.
    "data.overlap": "hashes, counted by the journal",
    # The Hub's cache, under its lock.
    "model_files.download.partial_file": "ranges, with a journal",
    "model_files.download.whole": "a mark; one that is damaged is made again",
    # Not on the disk.
    "system.reading": "opens to read",
    "system.signals": "os.devnull",
    "conversion.landlock": "opens to read",
    "training.throughput": "/proc",
}
METHODS = {"write_text", "touch", "rename", "symlink_to", "hardlink_to"}
FUNCTIONS = {
    *("os.open", "os.rename", "os.replace", "os.link", "os.symlink", "os.truncate"),
    *("shutil.copy", "shutil.copy2", "shutil.copyfile", "shutil.copytree", "shutil.move"),
}


def writes(node: ast.Call) -> bool:
    called = ast.unparse(node.func)
    if called in FUNCTIONS:
        return True
    if isinstance(node.func, ast.Attribute) and node.func.attr in METHODS:
        return True
    if called.endswith((".write_bytes", ".mkfifo")):
        return True
    if called == "open" or called.endswith(".open"):
        return any(
            isinstance(mode, ast.Constant)
            and isinstance(mode.value, str)
            and set(mode.value) <= set("rwxab+t")
            and set(mode.value) & set("wxa+")
            for mode in [*node.args, *(keyword.value for keyword in node.keywords)]
        )
    return False


def found(module: str) -> list[str]:
    calls = (node for node in ast.walk(MODULES[module]) if isinstance(node, ast.Call))
    return [f"{module}:{call.lineno}: {ast.unparse(call)}" for call in calls if writes(call)]


def test_modules_write_files_by_the_one_that_does():
    others = [module for module in MODULES if module.partition(".")[2] not in WRITERS]
    calls = [call for module in others for call in found(module)]
    assert not calls, "use write_bytes, write_json, append_text or new_directory"


@pytest.mark.parametrize("module", WRITERS)
def test_modules_with_their_own_way_of_writing_use_it(module):
    assert found(f"inheritune.{module}")
