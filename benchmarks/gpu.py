"""Training speed on one card beside transformers.Trainer, in one command under nine minutes.

    python benchmarks/gpu.py [--minutes 8.5] [--accumulate 4] [--peak TFLOPS]
    python benchmarks/gpu.py --device cpu --tiny      the same code without a card, in a minute

Fresh models of 13 layers of OpenLLaMA-3B's shape (2,048 tokens) and of GPT-2 medium (1,024), random
ids, bf16 over fp32 weights. Ours is the real loop as it sets itself up on the card. Trainer gets
bf16, SDPA, fused AdamW, torch_compile (left out where it fails), no dropout, and the same batch:
what the card holds, halved for both when one runs out of memory. Each program is a process of its
own, alone on the card; rounds are repeated, the other way round, while there is time. Time is of at
least ten steps and 20 seconds between two synchronisations, after warm-up and compiling.

MFU = tokens/s x FLOP/token / peak, where FLOP/token = 6 N + 6 L d T: N weights in matrix products
(the head once, no embedding), causal attention; recomputation does not count. Ends with 4 when
there is no card.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from measuring.table import head, machine, row, software
from training.driver import Child, Died, Program
from training.shapes import GPU_SHAPES, TINY_GPU_SHAPES, Shape, config

_CARDS = {  # what torch calls them, as `inheritune plan --device` calls them
    r"\bB200\b": "b200",
    r"\bH200\b(?! NVL)": "h200",
    r"\bH100 PCIe\b": "h100-pcie",
    r"\bH100\b(?! NVL)": "h100",
    r"\bA100\b": "a100",
    r"\bL40S\b": "l40s",
    r"\bL4\b": "l4",
    r"\bA10\b": "a10",
    r"\bRTX 4090$": "rtx4090",
    r"\bRTX 3090$": "rtx3090",
    r"\bMI300X\b": "mi300x",
}
_SHARE = 0.92  # of the card's memory that a first guess at the batch may take
_ROUNDS = 3  # at most


@dataclass
class Measured:
    """A shape and its two programs; the batch is what both could hold."""

    shape: Shape
    programs: list[Program]
    flops_per_token: float
    seconds: float = 0.0  # that its last round took, starting and compiling included


@dataclass(frozen=True)
class Bench:
    """What all of it shares."""

    card: dict[str, Any] | None
    env: dict[str, str]
    deadline: float
    accumulate: int
    steps: int
    least_s: float
    scratch: Path

    @property
    def left_s(self) -> float:
        return self.deadline - time.monotonic()


def measure(bench: Bench, one: Measured, number: int) -> None:
    """One round of a shape; a batch that is too large is halved and everything done again."""
    began = time.monotonic()
    for program in one.programs if number % 2 == 0 else one.programs[::-1]:
        while not program.why_not and not _take_turn(bench, program, one.shape, number):
            if _out_of_memory(program) and one.shape.batch > 1:
                one.shape = replace(one.shape, batch=one.shape.batch // 2)
                for other in one.programs:
                    other.why_not, other.seconds, other.facts = "", [], {}
                print(f"  out of memory: {one.shape.batch} sequences", flush=True)
                measure(bench, one, number)
                return
            if number == 0 and program.module == "with_trainer" and "recipe" not in program.options:
                print(
                    f"  {program.name}: {program.why_not}; again without torch_compile", flush=True
                )
                program.options["recipe"] = {"compile": "off"}
                program.name, program.why_not = f"{program.name} without torch_compile", ""
    one.seconds = time.monotonic() - began


def _take_turn(bench: Bench, program: Program, shape: Shape, number: int) -> bool:
    if bench.left_s < 20 and bench.card:
        program.why_not = "out of time" if not program.seconds else ""
        return True
    folder = bench.scratch / "program"
    shutil.rmtree(folder, ignore_errors=True)
    given = {"accumulate": bench.accumulate, "least_s": bench.least_s}
    began = time.monotonic()
    child = Child(replace(program, options=given | program.options), shape, folder, bench.env)
    try:
        child.answer(bench.left_s)
        started = time.monotonic() - began
        seconds = child.ask(str(bench.steps), bench.left_s)["seconds"]
        program.facts = child.ask("end")
    except Died as error:
        program.why_not = "out of time" if bench.left_s <= 0 else str(error)
        return bench.left_s <= 0
    finally:
        child.close()
    program.seconds.append(seconds)
    print(
        f"  round {number + 1}, {shape.name}, {program.name}: {seconds * 1000:,.0f} ms a step, "
        f"started and warm after {started:.0f} s",
        flush=True,
    )
    return True


def _out_of_memory(program: Program) -> bool:
    return "out of memory" in program.why_not.lower()


def first_batch(shape: Shape, memory: float | None) -> Shape:
    """With a batch that the card should hold beside weights, gradients and moments."""
    per_layer = 4 * shape.width * shape.width + 3 * shape.width * shape.inner
    params = shape.layers * per_layer + (2 - shape.tied) * shape.vocab * shape.width
    token = shape.layers * (32 * shape.width + 8 * shape.inner) + 10 * shape.vocab  # bytes
    batch = shape.batch
    while memory and batch > 1 and 18 * params + batch * shape.length * token > _SHARE * memory:
        batch //= 2
    return replace(shape, batch=batch)


def peak_flops(card: dict[str, Any] | None, given: float | None) -> float | None:
    """Of dense bf16 products; None where nobody said."""
    from inheritune.system.devices import choose_device

    if given:
        return given * 1e12
    if card is None:
        return choose_device("cpu").peak_flops
    names = [name for pattern, name in _CARDS.items() if re.search(pattern, card["name"])]
    return choose_device(names[0]).peak_flops if names else None


def flops_per_token(shape: Shape) -> float:
    from inheritune.training.models import describe_config

    return describe_config(config(shape).to_dict(), shape.length).flops_per_token


def print_table(bench: Bench, found: list[Measured], peak: float | None) -> None:
    where = f"{bench.card['name']}, {bench.card['build']}" if bench.card else "no card"
    print(f"\n{where}; {machine()}; {software(('inheritune', 'torch', 'transformers'))}.")
    assumed = f"{peak / 1e12:,.1f} TFLOP/s" if peak else "unknown: name it with --peak"
    print(f"Peak: {assumed}. Medians of the rounds.\n")
    titles = ["", "", "sequences x tokens x accumulated", "rounds", "ms a step", "tokens/s"]
    print(head([*titles, "MFU", "time / ours", "peak of the card, GiB", "of the process, MiB"]))
    for one in found:
        for program in one.programs:
            print(row([one.shape.name, program.name, *_cells(bench, one, program, peak)]))
    for one in found:
        for program in one.programs:
            if used := program.facts.get("settings"):
                print(f"\n{one.shape.name}, {program.name}: {used}")


def _cells(bench: Bench, one: Measured, program: Program, peak: float | None) -> list[str]:
    if not program.seconds:
        return [f"not run: {program.why_not}", *[""] * 7]
    shape, ours = one.shape, one.programs[0]
    median = statistics.median(program.seconds)
    rate = shape.tokens * bench.accumulate / median
    mfu = f"{rate * one.flops_per_token / peak:.1%}" if peak else "n/a"
    pairs = zip(program.seconds, ours.seconds, strict=False)
    ratio = f"{statistics.median(a / b for a, b in pairs):.2f}" if ours.seconds else "–"
    card, own = program.facts.get("card_mib"), program.facts.get("peak_mib")
    return [
        f"{shape.batch} x {shape.length} x {bench.accumulate}",
        str(len(program.seconds)),
        f"{median * 1000:,.1f}",
        f"{rate:,.0f}",
        mfu,
        ratio,
        f"{card / 1024:,.1f}" if card else "–",
        f"{own:,.0f}" if own else "–",
    ]


def run(options: argparse.Namespace) -> int:
    env = {"CUDA_VISIBLE_DEVICES": ""} if options.device == "cpu" else {}
    asked = [sys.executable, "-m", "training.device"]
    here = Path(__file__).parent
    card = json.loads(subprocess.check_output(asked, cwd=here, env=os.environ | env))
    if card is None and options.device == "cuda":
        print("no CUDA device: nothing was measured. Run it where there is one.", file=sys.stderr)
        return 4
    shapes = TINY_GPU_SHAPES if options.tiny else GPU_SHAPES
    steps, least_s = (2, 0.0) if options.tiny else (10, 20.0)
    found = []
    for shape in shapes.values():
        programs = [
            Program("inheritune", "ours"),
            Program("Trainer", "with_trainer", {"best": True}),
        ]
        fitting = first_batch(shape, card and card["memory_bytes"])
        found.append(Measured(fitting, programs, flops_per_token(shape)))
    with tempfile.TemporaryDirectory(prefix="gpu-bench-") as name:
        deadline = time.monotonic() + 60 * options.minutes
        bench = Bench(card, env, deadline, options.accumulate, steps, least_s, Path(name))
        for number in range(1 if options.tiny else _ROUNDS):
            for one in found:
                if not number or bench.left_s > 1.2 * one.seconds:
                    measure(bench, one, number)
    print_table(bench, found, peak_flops(card, options.peak))
    return 0 if any(program.seconds for one in found for program in one.programs) else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=8.5, help="at most, less the table")
    parser.add_argument("--accumulate", type=int, default=4, help="batches in an optimizer step")
    parser.add_argument("--peak", type=float, help="of the card, dense bf16, in TFLOP/s")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny models, one round")
    return run(parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
