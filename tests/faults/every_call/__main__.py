"""Fail and kill a tiny run at every call that changes its files, and continue it each time.

    python tests/faults/every_call [--stride 10] [--jobs 2] [--publish] [--results FILE]

A library of C, `calls.c`, is loaded before all others. It counts the calls that change the file
system below the run's directory, of Python and of the libraries beneath, and interferes with the
k-th: it ends the process within it (KILL), lets it fail once (EIO), or lets it fail together with
every later call that needs room (ENOSPC). Then the same command continues without a fault.

What must hold, for every k: the first start ends by the kill, or with exit code 4 and a message, or
as if nothing had happened; there is no traceback; the second start ends with the files, losses,
weights, tokens and FLOPs of a run that was left alone, and nothing else lies in the directory.

Results are kept in a file; an interrupted pass goes on there, unless the run makes other calls now.

Each start is forked from this process, which has imported everything and carried out the run once.
Two things are replaced in it: charts are not drawn, and the model's class is asked without another
process.
"""

import argparse
import ctypes
import errno
import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))  # tiny_models, tiny_tasks

from faults.every_call.outcome import Outcome, differences, outcome_of  # noqa: E402
from faults.every_call.page import SUMMARY, publish  # noqa: E402

from inheritune.__main__ import main as command_line  # noqa: E402
from inheritune.errors import MachineError  # noqa: E402

LIBRARY = HERE.parents[2] / "build" / "calls.so"
RESULTS = HERE.parents[2] / "build" / "every_call.jsonl"
RUN = Path("runs/tiny")
PATIENCE_S = 120
NO_FAULT, COUNT, KILL, ONCE, FULL = range(5)  # as in calls.c
FAULTS = {"kill": (KILL, 0), "EIO": (ONCE, errno.EIO), "ENOSPC": (FULL, errno.ENOSPC)}
RECIPE = """
name: tiny
reference: {{model: {folder}/reference}}
inherit: {{layers: 1}}
data: {{source: {folder}/text.jsonl, val_fraction: 0.2}}
train:
  tokens: 256
  seq_len: 16
  batch_tokens: 128
  micro_batch: 8
  learning_rate: 0.5
  min_learning_rate: 0.5
  precision: fp32
  eval_every: 128
  save_minutes: 1.0e-9
  keep: 1
grow: {{add: 1, max_rounds: 2}}
variants: {{inherit: {{start: inherit}}}}
analyze: {{sequences: 2, tokens_per_sequence: 16}}
evaluate: {{tasks: [piqa], task_data: {folder}/tasks, gains: false}}  # its figures are timings
report: {{prompts: [the small], sample_tokens: 4}}
"""


@dataclass(frozen=True)
class Call:
    """One call of the undisturbed run that changed a file."""

    name: str
    needs_room: bool
    path: str


def main() -> None:
    options = _options()
    if "calls.so" not in os.environ.get("LD_PRELOAD", ""):
        _start_again_with_library()
    _import_everything()
    LIBRARY.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="every-call-") as scratch:
        folder = Path(scratch).resolve()
        recipe = _make_inputs(folder)
        _warm_up(recipe, folder / "warm")
        code, calls = _undisturbed(recipe, folder / "undisturbed")
        truth = outcome_of(folder / "undisturbed" / RUN)
        print(f"{len(calls)} calls change the files of the undisturbed run", flush=True)
        cases = [
            (fault, k)
            for k in range(1 + options.first, len(calls) + 1, options.stride)
            for fault in options.faults
            if fault != "ENOSPC" or calls[k - 1].needs_room
        ]
        began = time.monotonic()
        done = _read_results(options.results, calls)
        left = [case for case in cases if case not in done]
        print(f"{len(left)} of {len(cases)} faults to inject", flush=True)
        _inject(left, recipe, folder, code, truth, options.jobs, options.results)
        seconds = time.monotonic() - began
    done = _read_results(options.results, calls)
    results = [done[case] for case in cases if case in done]
    wrong = [result for result in results if result["problems"]]
    for result in wrong:
        call = calls[result["k"] - 1]
        print(f"{result['fault']} at {result['k']}, {call.name} {call.path}:", *result["problems"])
    print(f"{len(results)} faults, {len(left)} of them in {seconds:.0f} s: {len(wrong)} not held")
    if len(results) < len(cases):
        sys.exit(f"{len(cases) - len(results)} have no result")
    if options.publish:
        publish([call.name for call in calls], results, options.stride)
        print(f"{SUMMARY} is written")
    sys.exit(bool(wrong))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stride", type=int, default=1, help="take every n-th call only")
    parser.add_argument("--first", type=int, default=0, help="calls to leave out at the beginning")
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side")
    parser.add_argument("--faults", nargs="+", choices=FAULTS, default=list(FAULTS))
    parser.add_argument("--results", type=Path, default=RESULTS, help="continued where it is there")
    parser.add_argument("--publish", action="store_true", help="write the figures of the page")
    return parser.parse_args()


def _start_again_with_library() -> None:
    LIBRARY.parent.mkdir(exist_ok=True)
    source = HERE / "calls.c"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", source, "-o", LIBRARY, "-ldl"], check=True)
    more = {"LD_PRELOAD": str(LIBRARY), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    more |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | more)


def _import_everything() -> None:
    import datasets  # noqa: F401
    import vl_convert

    import inheritune.cli.app  # noqa: F401
    from inheritune.surgery.class_check import ask_class

    vl_convert.vegalite_to_svg = lambda *_, **__: "<svg/>"
    vl_convert.vegalite_to_png = lambda *_, **__: b"\x89PNG\r\n\x1a\n"
    vl_convert.javascript_bundle = lambda *_, **__: ""
    ask_class._child = _ClassInThisProcess  # type: ignore[assignment]


def _warm_up(recipe: Path, runs: Path) -> None:
    """Carry the run out in this process, and set aside what that has imported and cached."""
    from inheritune.recipe.load import read_recipe
    from inheritune.run.execute import execute

    execute(read_recipe(recipe), runs / "tiny")
    gc.collect()
    gc.freeze()  # else each collection of a forked start walks, and copies, all of it


class _ClassInThisProcess:
    def exchange(self, line: bytes) -> bytes:
        from inheritune.surgery.class_check.class_process import find_answer

        values = json.loads(line)
        answer = find_answer(values.pop("question"))(**values)
        return json.dumps({"answer": answer}).encode()


def _make_inputs(folder: Path) -> Path:
    import tiny_models
    from tiny_tasks import write_tasks

    tiny_models.tiny_reference(folder / "reference")
    write_tasks(folder / "tasks", "piqa", questions=2)
    words = "the small model learns what the large one knew before it grew".split()  # noqa: SIM905
    lines = [json.dumps({"text": " ".join([str(i), *words[i % 5 :], *words])}) for i in range(60)]
    (folder / "text.jsonl").write_text("\n".join(lines) + "\n")
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.format(folder=folder))
    return recipe


def _undisturbed(recipe: Path, folder: Path) -> tuple[int, list[Call]]:
    log = recipe.with_name("calls.txt")
    code = _wait(_start(recipe, folder, COUNT, 0, 0, log))
    if code not in (0, 6):
        sys.exit((folder / "stderr").read_text())
    calls = []
    for line in log.read_text().splitlines():
        name, needs_room, path = line.split(" ", 2)
        calls.append(Call(name, needs_room == "1", path.removeprefix(f"{folder / RUN}/")))
    return code, calls


def _read_results(path: Path, calls: list[Call]) -> dict[tuple[str, int], dict[str, Any]]:
    """The results of earlier passes over the same calls, by fault and position; else none."""
    names = [call.name for call in calls]
    lines = path.read_text().splitlines() if path.exists() else []
    if not lines or json.loads(lines[0]) != names:
        path.write_text(json.dumps(names) + "\n")
        return {}
    results = [json.loads(line) for line in lines[1:]]
    return {(result["fault"], result["k"]): result for result in results}


def _inject(
    cases: list[tuple[str, int]],
    recipe: Path,
    folder: Path,
    code: int,
    truth: Outcome,
    jobs: int,
    out: Path,
) -> None:
    """Share the cases among forked workers, which append a line to ``out`` for each."""
    workers = []
    for job in range(jobs):
        worker = os.fork()
        if not worker:
            with out.open("a") as results:
                for fault, k in cases[job::jobs]:
                    result = _one(fault, k, recipe, folder / f"{fault}-{k}", code, truth)
                    results.write(json.dumps(result) + "\n")
                    results.flush()
                    if result["problems"]:
                        print(result, flush=True)
            os._exit(0)
        workers.append(worker)
    for worker in workers:
        os.waitpid(worker, 0)


def _one(
    fault: str, k: int, recipe: Path, folder: Path, code: int, truth: Outcome
) -> dict[str, Any]:
    kind, error = FAULTS[fault]
    first = _wait(_start(recipe, folder, kind, k, error))
    problems = list(_messages(folder, fault, first, code))
    second = _wait(_start(recipe, folder, NO_FAULT, 0, 0))
    if second != code:
        problems.append(f"continued, it ended with {second}: {(folder / 'stderr').read_text()}")
    else:
        problems += differences(truth, outcome_of(folder / RUN))
    shutil.rmtree(folder)
    return {"fault": fault, "k": k, "code": first, "problems": problems}


def _messages(folder: Path, fault: str, first: int, code: int) -> Iterator[str]:
    said = (folder / "stderr").read_text()
    allowed = {-signal.SIGKILL} if fault == "kill" else {code, MachineError.exit_code}
    if first not in allowed:
        yield f"it ended with {first}: {said[-1500:]}"
    if "Traceback" in said or (folder / "inheritune-error.log").exists():
        yield "a traceback"
    if first == MachineError.exit_code and "error: " not in said:
        yield "no message"


def _start(
    recipe: Path, folder: Path, kind: int, k: int, error: int, log: Path | None = None
) -> int:
    """Fork a start of the run in ``folder``; returns its process id."""
    (folder / RUN.parent).mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.chdir(folder)
        for descriptor, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666), descriptor)
        sys.argv = ["inheritune", "run", str(recipe)]
        library = ctypes.CDLL(str(LIBRARY))
        library.arm(bytes(folder / RUN), kind, ctypes.c_long(k), error, bytes(log or b""))
        command_line()
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _wait(child: int) -> int:
    """Wait for a start; its exit code, -N where signal N ended it."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return -signal.SIGALRM  # no answer in time


if __name__ == "__main__":
    main()
