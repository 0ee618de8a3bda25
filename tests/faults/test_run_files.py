"""Inject faults into the files of a run: links, pipes, records of strangers, writers at once."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from tiny_recipe import as_file, recipe_of
from typer.testing import CliRunner

from inheritune.cli import launch
from inheritune.cli.app import app
from inheritune.errors import DataError, Interrupted, MachineError, RecipeError
from inheritune.publishing.push import pack
from inheritune.recipe.load import RecipeFile
from inheritune.reporting import page
from inheritune.reporting.live_text import status_of
from inheritune.reporting.page import write_report
from inheritune.run.execute import execute
from inheritune.run_directory import Run
from inheritune.system.files import scratch_directory
from inheritune.system.progress import Progress

posix_only = pytest.mark.skipif(os.name != "posix", reason="links and pipes of POSIX")


@pytest.fixture
def run(synthetic: ModuleType, tmp_path: Path) -> Path:
    """A run with a target that a card is written for."""
    root = Path(synthetic.build_run(tmp_path))
    (root / "target").mkdir()
    (root / "target" / "config.json").write_text("{}")
    return root


@pytest.fixture
def private(tmp_path: Path) -> Path:
    """Files of the user, outside the run."""
    folder = tmp_path / "private"
    (folder / "figures").mkdir(parents=True)
    for name in ("key", "model.safetensors", "config.json", "figures/val-loss.png", "log.txt"):
        (folder / name).write_text(f"mine: {name}")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def command(*arguments: str) -> tuple[int, str]:
    """Exit code and messages of a command."""
    result = CliRunner().invoke(app, list(arguments))
    assert "Traceback" not in result.output and "bug in inheritune" not in result.output
    return result.exit_code, result.output


LINKS = {
    "report": "figures",
    "report/tables": "figures",
    "report/figures/z.png": "key",
    "report/index.html": "key",
    "target/README.md": "key",
    "target/.README.md.tmp": "key",
    "target/figures": "figures",
    "recipe.yaml": "key",
    "log.txt": "log.txt",
    "run.json": "key",
    "variants/other": "figures",
    "variants/inherit/4-layers/model": "figures",
    "variants/inherit/4-layers/metrics.jsonl": "log.txt",
    "evaluation": "figures",
    "tokens.partial": "figures",
    "target/nothing-there-yet": "missing/file",
}


@posix_only
@pytest.mark.parametrize("name", LINKS)
@pytest.mark.fault("F1")
def test_a_link_that_leads_out_of_a_run_is_refused_by_every_command(
    name: str, run: Path, private: Path
) -> None:
    link = run / name
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(private / LINKS[name])
    before = contents(private), contents(run)
    for arguments in (["report"], ["watch", "--text", "--json"], ["verify"]):
        code, messages = command(*arguments, str(run))
        assert code == 3
        assert str(link) in messages and "is a link that leads out of the run" in messages
    with pytest.raises(DataError, match="move all of it there and link to its directory"):
        pack(run)
    # A record that is a link to something else shows no run at all.
    with pytest.raises(RecipeError if name == "run.json" else DataError):
        Run.create(run)
    (run / ".lock").unlink(missing_ok=True)  # of the refused start
    assert (contents(private), contents(run)) == before


@posix_only
@pytest.mark.fault("F1")
def test_a_target_that_is_a_link_is_not_packed(run: Path, private: Path) -> None:
    (run / "target" / "config.json").unlink()
    (run / "target").rmdir()
    (run / "target").symlink_to(private)
    code, messages = command("push", str(run), "--repo-id", "me/mine", "--dry-run")
    assert code == 3 and "leads out of the run" in messages


@posix_only
@pytest.mark.fault("F1")
def test_links_that_stay_in_the_run_and_a_link_to_the_run_work(run: Path, tmp_path: Path) -> None:
    (run / "variants" / "newest").symlink_to(run / "variants" / "inherit")
    (tmp_path / "linked").symlink_to(run)
    assert write_report(tmp_path / "linked").is_file()
    with Run.hold(tmp_path / "linked"):
        pass


@pytest.mark.fault("F1")
def test_only_figures_that_the_report_drew_get_onto_the_card(run: Path) -> None:
    (run / "report" / "figures").mkdir(parents=True)
    (run / "report" / "figures" / "z.png").write_text("somebody's")
    assert command("report", str(run))[0] == 0
    figures = {path.name for path in (run / "target" / "figures").iterdir()}
    assert "val-loss.png" in figures and "z.png" not in figures
    assert "z.png" not in (run / "target" / "README.md").read_text()


RECORDS = ["run.json", "variants/inherit/6-layers/metrics.jsonl", "target/inherit.json"]


@posix_only
@pytest.mark.parametrize("name", RECORDS)
@pytest.mark.fault("F2")
def test_a_record_that_is_a_pipe_is_refused_and_never_waited_for(name: str, run: Path) -> None:
    (run / name).unlink(missing_ok=True)
    os.mkfifo(run / name)
    for arguments in (["report"], ["watch", "--text", "--json"], ["verify"]):
        assert command(*arguments, str(run))[0] == 3
    assert f"{run / name} is neither a file nor a directory" in command("report", str(run))[1]


LIMITED = """
import resource, sys
from pathlib import Path
from inheritune.publishing.card import write_card
from inheritune.reporting.page import read_report
from inheritune.reporting.summary import missing
resource.setrlimit(resource.RLIMIT_AS, (4 * 2**30, 4 * 2**30))
report = read_report(Path(sys.argv[1]))
print(*report.problems, *missing(report.record, report.curves))
print("card:", write_card(Path(sys.argv[1]), {}))
"""


@posix_only
@pytest.mark.parametrize("name", RECORDS)
@pytest.mark.fault("F2")
def test_a_record_of_a_terabyte_is_not_read(name: str, run: Path) -> None:
    with (run / name).open("wb") as file:
        file.truncate(10**12)
    command = [sys.executable, "-c", LIMITED, str(run)]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ("larger than" in answer.stdout) == (name != "target/inherit.json")
    if name == "run.json":
        assert "DataError" in answer.stderr and "larger than" in " ".join(status_of(run).lines)
    else:
        assert "card: " + str(run / "target" / "README.md") in answer.stdout


WRITE_MANY = """
import sys
from pathlib import Path
from inheritune.system.files import new_directory
for number in range(300):
    with new_directory(Path(sys.argv[1], f"{'x' * 40}-{sys.argv[2]}-{number}")) as staging:
        (staging / "a").touch()
"""


@pytest.mark.fault("F4")
def test_writers_of_similar_names_leave_each_others_staging_alone(tmp_path):
    commands = [[sys.executable, "-c", WRITE_MANY, str(tmp_path), str(n)] for n in range(4)]
    writers = [subprocess.Popen(c, stderr=subprocess.PIPE, text=True) for c in commands]
    assert [writer.communicate(timeout=300)[1] for writer in writers] == [""] * 4
    assert len(list(tmp_path.glob("x*/a"))) == 1200
    assert not list(tmp_path.glob(".*"))


BOTH = """
import sys, time
from pathlib import Path
from inheritune import run_directory
from inheritune.errors import MachineError
from inheritune.run_record.record import (RunRecord)

write_json = run_directory.write_json
def slowly(path, value):
    time.sleep(0.5)
    write_json(path, value)

run_directory.write_json = slowly
print("ready", flush=True)
sys.stdin.read(1)
try:
    with run_directory.Run.hold(Path(sys.argv[1])) as run:
        run.update(RunRecord(name=sys.argv[2]))
        time.sleep(1)
        print("done", run.read())
except MachineError as error:
    print("refused", error)
"""


@pytest.mark.fault("F3")
def test_of_two_starts_at_once_one_is_told_of_the_other_and_the_record_is_whole(
    tmp_path: Path,
) -> None:
    root = tmp_path / "run"
    starts = [
        subprocess.Popen(
            [sys.executable, "-c", BOTH, str(root), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in ("first", "second")
    ]
    for start in starts:
        assert start.stdout and start.stdout.readline() == "ready\n"
    for start in starts:
        assert start.stdin
        start.stdin.write("x")
        start.stdin.flush()
    answers = [start.communicate(timeout=60)[0] for start in starts]
    done = [answer for answer in answers if answer.startswith("done")]
    refused = [answer for answer in answers if answer.startswith("refused")]
    assert len(done) == len(refused) == 1
    assert "another process is writing to" in refused[0]
    assert Run(root).read()["name"] in done[0]


KILLED = """
import os, signal, sys
from contextlib import ExitStack
from pathlib import Path
from inheritune.system.files import new_directory, scratch_directory, write_bytes
run = Path(sys.argv[1])
with ExitStack() as stack:
    stack.enter_context(scratch_directory(run / "evaluation" / "tasks"))
    stack.enter_context(new_directory(run / "variants/inherit/6-layers/checkpoints/step-00000007"))
    stack.enter_context(new_directory(run / "target", replace=True))
    stack.enter_context(scratch_directory(run.parent / "processes"))
    os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
    write_bytes(run / "evaluation" / "piqa-0123.json", b"{}")
"""


@posix_only
@pytest.mark.fault("F5")
def test_what_a_killed_process_left_is_gone_after_the_next_start(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run / "evaluation").mkdir()
    command = [sys.executable, "-c", KILLED, str(run)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert len(list(run.parent.rglob(".*.tmp-*"))) == 5
    (run / ".mine.tmp-notes").touch()  # not a name that we give
    with scratch_directory(run / "evaluation" / "tasks") as living:
        monkeypatch.setattr(launch, "worker_command", lambda arguments: [sys.executable, "-c", ""])
        assert launch.launch([], 2, run) == 0
        with Run.hold(run):
            assert list(run.parent.rglob(".*.tmp-*")) == [run / ".mine.tmp-notes", living]


@pytest.fixture(scope="module")
def finished(
    tiny_reference: Path, tiny_text: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[RecipeFile, Path]:
    """A recipe, and its finished run."""
    recipe = as_file(recipe_of(tiny_reference, tiny_text, grow={"add": 0}, variants=ONE_VARIANT))
    root = tmp_path_factory.mktemp("finished") / "run"
    execute(recipe, root)
    return recipe, root


ONE_VARIANT = {"inherit": {"start": "inherit"}}
RESULT = "variants/inherit/2-layers/result.json"
WRONG = {
    "text for a loss": (RESULT, {"val_loss": "low"}),
    "a key of a later version": (RESULT, {"quantised": True}),
    "a list for a result": (RESULT, []),
    "a number for windows": ("benchmark.json", {"windows": 5}),
    "a list for a benchmark": ("benchmark.json", []),
}


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.fault("F6")
def test_a_result_of_wrong_types_ends_with_3_and_its_file(
    case: str, finished: tuple[RecipeFile, Path], tmp_path: Path
) -> None:
    recipe, root = finished[0], shutil.copytree(finished[1], tmp_path / "run")
    name, change = WRONG[case]
    record = json.loads((root / name).read_text())
    record["result"] = record["result"] | change if isinstance(change, dict) else change
    (root / name).write_text(json.dumps(record))
    with pytest.raises(DataError, match=re.escape(str(root / name))) as caught:
        execute(recipe, root)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    "change",
    [
        {"earlier": 5, "allowed_changes": 5, "seconds": "long", "notes": 5},
        {"seconds": 1.7e308, "rounds": [{"val_loss": 1.7e308, "layers": 1.7e308}]},
        {"benchmark": {"val_loss": 1.7e308}, "ledger": [{"flops": 1.7e308}, {"flops": 1.7e308}]},
        {"result": [], "command": 5, "status": {}},
    ],
)
@pytest.mark.fault("F6")
def test_a_record_of_wrong_types_has_its_page_and_is_continued(
    change: dict[str, object], finished: tuple[RecipeFile, Path], tmp_path: Path
) -> None:
    recipe, root = finished[0], shutil.copytree(finished[1], tmp_path / "run")
    Run(root).record_file.write_text(json.dumps(Run(root).read() | change))
    assert command("report", str(root))[0] == 0
    assert command("watch", "--text", "--json", str(root))[0] == 0
    if "command" not in change:
        execute(recipe, root)
        assert Run(root).read()["status"] == "done"


@pytest.mark.parametrize("task", ["", "inherit, 2 layers", "benchmark"])
@pytest.mark.fault("F7")
def test_a_run_that_is_removed_while_it_runs_does_not_come_back(
    task: str, tiny_reference: Path, tiny_text: Path, tmp_path: Path
) -> None:
    root = tmp_path / "run"

    def remove(progress: Progress) -> None:
        if progress.task.startswith(task) and root.exists():
            shutil.rmtree(root)

    recipe = recipe_of(tiny_reference, tiny_text, grow={"add": 0}, variants=ONE_VARIANT)
    with pytest.raises(MachineError) as caught:
        execute(as_file(recipe), root, remove)
    assert str(root) in str(caught.value)
    assert not root.exists()


@posix_only
@pytest.mark.fault("F8")
def test_sigterm_while_the_report_is_written_ends_with_75_and_the_result_stands(
    finished: tuple[RecipeFile, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, root = finished[0], shutil.copytree(finished[1], tmp_path / "run")
    shutil.rmtree(root / "report")
    draw = page.svg

    def stopped(spec: object) -> str:
        os.kill(os.getpid(), signal.SIGTERM)
        return draw(spec)

    monkeypatch.setattr(page, "svg", stopped)
    with pytest.raises(Interrupted) as caught:
        execute(recipe, root)
    assert caught.value.exit_code == 75
    assert Run(root).read()["status"] == "done" and not (root / "report/index.html").exists()
    monkeypatch.undo()
    execute(recipe, root)
    assert (root / "report/index.html").exists()
