"""A run that is killed and killed again, beside one that is not: are the weights the same bytes?

    python benchmarks/kills.py [--kills 10] [--tokens 600K] [--text FILE] [--seed 0]

The demo's reference, cut to half its layers and grown once, is trained on the text of novels. One
run is left alone. A second one is killed with SIGKILL at random moments, each time at most one
undisturbed run's time divided by the kills after its start, and continued by the same command. A
third one is stopped by SIGTERM and continued on two processes, stopped again and continued on one.
Exit code 1 where the second differs from the first in one bit of its weights, or where the third
lost a step or differs in a loss by more than summing in another order explains.
"""

import argparse
import hashlib
import json
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

NOVELS = Path(__file__).resolve().parents[2] / "shared/data/text/novels_val.jsonl.gz"
RECIPE = """
name: novels
reference: {{model: "embedded:demo"}}
inherit: {{layers: 4}}
data: {{source: "{text}", val_fraction: 0.04, allow_repeat: true}}
train:
  tokens: {tokens}
  seq_len: 128
  batch_tokens: 2048
  micro_batch: 8
  learning_rate: 1.0e-3
  min_learning_rate: 1.0e-4
  warmup_tokens: 20K
  eval_every: 100K
  save_minutes: 0.05
grow: {{add: 2, max_rounds: 2, weights: keep}}
variants: {{inherit: {{start: inherit}}}}
"""
INTERRUPTED = 75
NOT_MATCHED = 6  # the results are complete
# Of a loss, when the same numbers are summed in another order in fp32, step after step.
SUMMED_OTHERWISE = 1e-3


def main() -> None:
    options = _options()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        recipe = folder / "recipe.yaml"
        recipe.write_text(RECIPE.format(text=options.text, tokens=options.tokens))
        seconds = _unbroken(recipe, folder / "unbroken")
        kills = _killed(recipe, folder / "killed", options.kills, seconds, options.seed)
        _elastic(recipe, folder / "elastic", seconds)
        ok = _report(folder, kills, seconds)
    sys.exit(not ok)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--tokens", default="600K", help="of each of the two rounds")
    parser.add_argument("--text", type=Path, default=NOVELS)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if not options.text.exists():
        parser.error(f"there is no {options.text}: name a text with --text.")
    return options


def _start(recipe: Path, runs: Path, *more: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "inheritune", "run", recipe, "--runs", runs, "--json", *more],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        env=os.environ | {"TOKENIZERS_PARALLELISM": "false"},
    )


def _finish(process: subprocess.Popen[bytes], *allowed: int) -> int:
    _, said = process.communicate()
    if process.returncode not in (0, NOT_MATCHED, *allowed):
        sys.exit(f"exit code {process.returncode}:\n{said.decode()[-2000:]}")
    return process.returncode


def _unbroken(recipe: Path, runs: Path) -> float:
    began = time.perf_counter()
    _finish(_start(recipe, runs))
    return time.perf_counter() - began


def _killed(recipe: Path, runs: Path, kills: int, seconds: float, seed: int) -> list[float]:
    """Kill until the number is reached; returns the seconds after which each kill came."""
    moments = random.Random(seed)
    done: list[float] = []
    while len(done) < kills:
        process = _start(recipe, runs)
        patience = moments.uniform(0, 2 * seconds / kills)
        try:
            process.communicate(timeout=patience)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            done.append(patience)
            print(f"kill {len(done)} after {patience:.1f} s, {_place(runs)}", flush=True)
            continue
        sys.exit(f"it was finished after {len(done)} kills: give more --tokens")
    _finish(_start(recipe, runs))
    return done


def _elastic(recipe: Path, runs: Path, seconds: float) -> None:
    for processes in (1, 2):
        process = _start(recipe, runs, "--processes", str(processes))
        _wait_for_steps(process, runs, more=40, patience=10 * seconds)
        process.send_signal(signal.SIGTERM)
        if _finish(process, INTERRUPTED) != INTERRUPTED:
            sys.exit("it was finished before it could be stopped: give more --tokens")
        print(f"stopped on {processes} process(es), {_place(runs)}", flush=True)
    _finish(_start(recipe, runs))


def _wait_for_steps(
    process: subprocess.Popen[bytes], runs: Path, more: int, patience: float
) -> None:
    end, goal = time.monotonic() + patience, len(_losses(runs)) + more
    while len(_losses(runs)) < goal and process.poll() is None and time.monotonic() < end:
        time.sleep(0.2)


def _losses(runs: Path) -> dict[tuple[str, int], float]:
    """Of each step of each training."""
    rows: dict[tuple[str, int], float] = {}
    for file in sorted(runs.rglob("metrics.jsonl")):
        training = file.parent.relative_to(runs).as_posix()
        for line in file.read_text().splitlines():
            try:
                row = json.loads(line)
            except ValueError:  # being written
                continue
            if "loss" in row:
                rows[training, row["step"]] = row["loss"]
    return rows


def _place(runs: Path) -> str:
    losses = _losses(runs)
    return f"{len(losses)} steps done" if losses else "no step done yet"


def _weights(runs: Path) -> dict[str, str]:
    return {
        file.relative_to(runs).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(runs.rglob("*.safetensors"))
        if "model" in file.parts or "target" in file.parts
    }


def _val_loss(runs: Path) -> float:
    record = json.loads(next(runs.glob("*/run.json")).read_text())
    return float(record["result"]["val_loss"])


def _report(folder: Path, kills: list[float], seconds: float) -> bool:
    alone, killed, elastic = (folder / name for name in ("unbroken", "killed", "elastic"))
    losses, again, shared = (_losses(runs) for runs in (alone, killed, elastic))
    same_weights = _weights(alone) == _weights(killed) and bool(_weights(alone))
    same_losses = losses == again
    furthest = max(abs(shared[key] - losses[key]) for key in losses.keys() & shared.keys())
    same_steps = losses.keys() == shared.keys()
    print(f"\n{os.cpu_count()} cores, {platform.platform()}, Python {platform.python_version()}")
    print(f"unbroken: {seconds:.1f} s, {len(losses)} steps, val_loss {_val_loss(alone)}")
    print(f"killed {len(kills)} times: val_loss {_val_loss(killed)}")
    print(f"  {len(_weights(alone))} weight files bit-equal: {same_weights}")
    print(f"  every step's loss equal: {same_losses}")
    print(f"1 -> 2 -> 1 processes: val_loss {_val_loss(elastic)}")
    print(f"  same steps: {same_steps}; largest difference of a loss: {furthest:.2g}")
    return same_weights and same_losses and same_steps and furthest < SUMMED_OTHERWISE


if __name__ == "__main__":
    main()
