"""Runs that are killed at random moments and continued, beside one that is not: is anything lost?

    python benchmarks/kills.py [--kills 20] [--processes 1 2] [--tokens 40K] [--results FILE]

The demo's reference is cut, trained, grown once, analysed and asked a task, on the text of novels.
Of each number of processes, one run is left alone. Others are killed with SIGKILL at moments drawn
from the time that the first one worked, and continued by the same command, again and again until
they are finished. Of several processes, all are killed, or one worker, which the others notice.

A line of the results is one kill, or the end of a run with all that differs from the one left
alone: files, bytes of weights and tokens, rows of metrics.jsonl, results, FLOPs; nothing may. A
pass that is interrupted goes on where its results end. At last, a run is stopped by SIGTERM and
continued on two processes and on one: it may differ by what summing in another order explains.
"""

import argparse
import gzip
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from faults.every_call.outcome import Outcome, differences, outcome_of  # noqa: E402

NOVELS = ROOT.parent / "shared/data/text/novels_val.jsonl.gz"
RECIPE = """
name: novels
reference: {{model: "embedded:demo"}}
inherit: {{layers: 4}}
data: {{source: "{folder}/text.jsonl", val_fraction: 0.1, allow_repeat: true}}
train:
  tokens: {tokens}
  seq_len: 128
  batch_tokens: 2048
  micro_batch: 8
  learning_rate: 1.0e-3
  min_learning_rate: 1.0e-4
  warmup_tokens: 20K
  eval_every: 20K
  save_minutes: 0.01
grow: {{add: 2, max_rounds: 2, weights: keep}}
variants: {{inherit: {{start: inherit}}}}
analyze: {{sequences: 4, tokens_per_sequence: 50}}
evaluate: {{tasks: [piqa], task_data: "{folder}/tasks", gains: false}}  # its figures are timings
"""
QUESTIONS = [
    {"goal": f"to reach place {n}", "sol1": "walk", "sol2": "sleep", "label": n % 2}
    for n in range(8)
]
INTERRUPTED = 75
NOT_MATCHED = 6  # the results are complete
PATIENCE_S = 300.0
# Rows of the text, and characters of each: little validation, so that kills meet every part.
ROWS, LONGEST = 60, 4000
# Of a loss, when the same numbers are summed in another order in fp32, step after step.
SUMMED_OTHERWISE = 1e-3


def main() -> None:
    options = _options()
    options.results.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="kills-") as scratch:
        folder = Path(scratch).resolve()
        recipe = _recipe(folder, options.text, options.tokens)
        for processes in options.processes:
            _soak(recipe, folder / str(processes), processes, options.kills, options.results)
        ok = _report(options.results)
        if options.elastic:
            ok &= _elastic(recipe, folder / "elastic")
    sys.exit(not ok)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=10, help="of each number of processes")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--tokens", default="40K", help="of each of the two rounds")
    parser.add_argument("--text", type=Path, default=NOVELS)
    parser.add_argument("--results", type=Path, default=ROOT / "build/kills.jsonl")
    parser.add_argument("--elastic", action=argparse.BooleanOptionalAction, default=True)
    options = parser.parse_args()
    if not options.text.exists():
        parser.error(f"there is no {options.text}: name a text with --text.")
    return options


def _recipe(folder: Path, text: Path, tokens: str) -> Path:
    with (gzip.open if text.suffix == ".gz" else open)(text, "rb") as rows:
        texts = [json.loads(row)["text"][:LONGEST] for row in islice(rows, ROWS)]
    documents = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (folder / "text.jsonl").write_text(documents)
    (folder / "tasks").mkdir()
    questions = "".join(json.dumps(question) + "\n" for question in QUESTIONS)
    (folder / "tasks/piqa.jsonl").write_text(questions)
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.format(folder=folder, tokens=tokens))
    return recipe


# --- kills ---


def _soak(recipe: Path, folder: Path, processes: int, kills: int, results: Path) -> None:
    """Kill runs of a number of processes until so many kills are behind finished runs."""
    done = [line for line in _read(results) if line["processes"] == processes]
    runs = [line for line in done if "differences" in line]
    number, killed = len(runs), sum(line["kills"] for line in runs)
    if killed >= kills:
        return
    process, root = _start(recipe, folder / "alone", processes)
    begun = _wait_for_work(process, root)
    _finish(process)
    work_s = time.monotonic() - begun
    truth = outcome_of(root)
    print(
        f"{processes} process(es): a run works for {work_s:.1f} s when it is left alone", flush=True
    )
    while killed < kills:
        killed += _killed_run(recipe, folder / str(number), processes, work_s, truth, results)
        number += 1


def _killed_run(
    recipe: Path, folder: Path, processes: int, work_s: float, truth: Outcome, results: Path
) -> int:
    """Kill a run at random moments until it is finished, and compare it; returns the kills."""
    draw = random.Random(f"{processes} {folder.name}")
    began, kills = time.monotonic(), 0
    while True:
        process, root = _start(recipe, folder, processes)
        _wait_for_work(process, root)
        moment = draw.uniform(0, work_s)
        victim = draw.choice(["all", *range(processes)]) if processes > 1 else "all"
        try:
            process.wait(timeout=moment)
            break
        except subprocess.TimeoutExpired:
            workers = _workers(process) if processes > 1 else []
            for pid in [process.pid, *workers] if victim == "all" else workers[victim:][:1]:
                os.kill(pid, signal.SIGKILL)
            process.wait(timeout=PATIENCE_S)
            kills += 1
            _write(results, processes=processes, kill=kills, after=moment, victim=victim)
    _finish(process)
    found = list(differences(truth, outcome_of(root)))
    seconds = time.monotonic() - began
    _write(results, processes=processes, kills=kills, seconds=seconds, differences=found)
    print(
        f"{processes} process(es), {kills} kills in {seconds:.0f} s: {found or 'equal'}", flush=True
    )
    shutil.rmtree(folder)
    return kills


def _start(recipe: Path, folder: Path, processes: int) -> tuple[subprocess.Popen[bytes], Path]:
    """Start a run in ``folder``; returns its process, and its directory."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "inheritune", "run", recipe, "--processes", str(processes)]
    with (folder / "stderr").open("wb") as stderr:
        process = subprocess.Popen(
            command,
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            start_new_session=True,
            env=os.environ | {"TOKENIZERS_PARALLELISM": "false"},
        )
    return process, folder / "runs/novels"


def _wait_for_work(process: subprocess.Popen[bytes], root: Path) -> float:
    """Wait until this start holds the run's lock; returns when that was."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end and process.poll() is None:
        try:
            holder = json.loads((root / ".lock.json").read_text())["pid"]
        except (OSError, ValueError):
            holder = None
        if holder is not None and holder in (process.pid, *_workers(process)):
            break
        time.sleep(0.02)
    return time.monotonic()


def _workers(process: subprocess.Popen[bytes]) -> list[int]:
    """The children of a launcher, by rank."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return sorted(map(int, children.read_text().split())) if children.exists() else []


def _finish(process: subprocess.Popen[bytes], *allowed: int) -> int:
    process.wait()
    if process.returncode not in (0, NOT_MATCHED, *allowed):
        sys.exit(f"a start ended with exit code {process.returncode}: {process.args}")
    return process.returncode


def _read(results: Path) -> list[dict[str, Any]]:
    lines = results.read_text().splitlines() if results.exists() else []
    return [json.loads(line) for line in lines]


def _write(results: Path, **line: object) -> None:
    with results.open("a") as out:
        out.write(json.dumps(line) + "\n")


def _report(results: Path) -> bool:
    runs = [line for line in _read(results) if "differences" in line]
    different = [line for line in runs if line["differences"]]
    print(f"\n{os.cpu_count()} cores, {platform.platform()}, Python {platform.python_version()}")
    for processes in sorted({line["processes"] for line in runs}):
        own = [line for line in runs if line["processes"] == processes]
        kills, seconds = (sum(line[key] for line in own) for key in ("kills", "seconds"))
        equal = sum(not line["differences"] for line in own)
        print(
            f"{processes} process(es): {kills} kills of {len(own)} runs, {equal} of them equal in "
            f"every byte, row and FLOP; {seconds / max(1, kills):.1f} s for each kill"
        )
    return not different


# --- another number of processes ---


def _elastic(recipe: Path, folder: Path) -> bool:
    process, alone = _start(recipe, folder / "alone", 1)
    _finish(process)
    for processes in (1, 2):
        process, root = _start(recipe, folder / "stopped", processes)
        _wait_for_steps(process, root, more=5)
        process.send_signal(signal.SIGTERM)
        if _finish(process, INTERRUPTED) != INTERRUPTED:
            sys.exit("it was finished before it could be stopped: give more --tokens")
    process, root = _start(recipe, folder / "stopped", 1)
    _finish(process)
    losses, shared = _losses(alone), _losses(root)
    furthest = max(abs(shared[key] - losses[key]) for key in losses.keys() & shared.keys())
    same = losses.keys() == shared.keys()
    print(
        f"1 -> 2 -> 1 processes: same steps: {same}; largest difference of a loss: {furthest:.2g}"
    )
    return same and furthest < SUMMED_OTHERWISE


def _wait_for_steps(process: subprocess.Popen[bytes], root: Path, more: int) -> None:
    end, goal = time.monotonic() + PATIENCE_S, len(_losses(root)) + more
    while len(_losses(root)) < goal and process.poll() is None and time.monotonic() < end:
        time.sleep(0.05)


def _losses(root: Path) -> dict[tuple[str, int], float]:
    """Of each step of each training."""
    rows: dict[tuple[str, int], float] = {}
    for file in sorted(root.rglob("metrics.jsonl")):
        training = file.parent.relative_to(root).as_posix()
        for line in file.read_text().splitlines():
            try:
                row = json.loads(line)
            except ValueError:  # being written
                continue
            if "loss" in row:
                rows[training, row["step"]] = row["loss"]
    return rows


if __name__ == "__main__":
    main()
