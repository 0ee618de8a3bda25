"""Training speed beside transformers.Trainer, litgpt and nanoGPT: whole steps, taking turns.

    python benchmarks/train.py [--shape a|b|c|demo|all] [--rounds 3] [--steps 2] [--parts]
    python benchmarks/train.py --reference     a step with a reference, beside TRL and DistillKit
    python benchmarks/train.py --overhead      where a step of the loop goes
    python benchmarks/train.py --resume        from starting to the first step

Each program is a process of its own that stays alive, so that it compiles once and its peak memory
is its own. Within a round every program does `--steps` steps of the same batch of random ids, after
one that is not counted; a ratio is the median of the rounds' ratios to ours. Ours is the real loop.
Trainer: as it comes; with all settings that make it faster (bf16, fused AdamW, torch_compile, no
dropout); and with our kernels as well. litgpt gets an environment of its own (`--litgpt DIR`, made
when it is missing), nanoGPT is a clone that you have (`--nanogpt DIR`).
"""

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from measuring import environment
from measuring.table import head, machine, row, software
from training.driver import Child, Program, take_turns
from training.shapes import SHAPES, Shape

LITGPT, TRL = ("litgpt", "0.5.13"), ("trl", "1.16.0")
_CPU = {"CUDA_VISIBLE_DEVICES": ""}  # this script is about processors; gpu.py is about cards


def programs(options: argparse.Namespace, shape: Shape, no_litgpt: str | None) -> list[Program]:
    recipe = {"compile": "off"} if options.no_compile else {}
    given: dict[str, Any] = {"recipe": recipe}
    found = [
        Program("inheritune", "ours", given),
        Program("bare loop, the same kernels", "bare", given),
        Program("Trainer, its defaults", "with_trainer", given),
        Program("Trainer, its fastest settings", "with_trainer", given | {"best": True}),
        Program(
            "Trainer, and our kernels", "with_trainer", given | {"best": True, "kernels": True}
        ),
        Program(
            "litgpt pretrain",
            "with_litgpt",
            python=options.litgpt / "bin" / "python",
            why_not=no_litgpt or "",
        ),
        Program(
            "nanoGPT, bf16 and compiled",
            "with_nanogpt",
            given | {"clone": str(options.nanogpt)},
            why_not=_no_nanogpt(options.nanogpt, shape),
        ),
    ]
    if options.only:
        chosen = [each for each in found[1:] if any(word in each.name for word in options.only)]
        found = [found[0], *chosen]
    if options.parts:
        parts = {"fp32": {"precision": "fp32"}, "the model's attention": {"attention": "model"}}
        parts |= {
            "not compiled": {"compile": "off"},
            "glibc's blocks": {"keep_large_blocks": "off"},
        }
        for name, change in parts.items():
            found.append(Program(f"inheritune, {name}", "ours", {"recipe": recipe | change}))
    return found


def with_reference(shape: Shape, trl: Path, no_trl: str | None) -> list[Program]:
    """A step with a reference that has half as many layers again, beside one without; eager."""
    given = {"recipe": {"compile": "off"}}
    learning = {"reference": replace(shape, layers=shape.layers * 3 // 2).as_json()}
    found = [
        Program("inheritune, without a reference", "ours", given),
        Program("inheritune, with one", "ours", given | learning),
    ]
    names = {"gkd": "TRL, GKD", "chunked": "TRL, chunked", "distillkit": "DistillKit's formula"}
    python = trl / "bin" / "python"
    return found + [
        Program(name, "with_trl", learning | {"loss": loss}, python, no_trl or "")
        for loss, name in names.items()
    ]


def _no_nanogpt(clone: Path | None, shape: Shape) -> str:
    if clone is None:
        return "no --nanogpt DIR"
    if not (clone / "model.py").is_file():
        return f"{clone} has no model.py"
    return "" if shape.kind == "gpt2" else "it has GPT-2 only"


def speed(
    shape: Shape, found: Sequence[Program], options: argparse.Namespace, scratch: Path
) -> None:
    print(f"\n{shape.name}, {shape.batch} x {shape.length} tokens", flush=True)
    take_turns(shape, found, options.rounds, options.steps, scratch, _CPU)
    print_speed(shape, found)


def print_speed(shape: Shape, found: Sequence[Program]) -> None:
    facts = found[0].facts  # of ours
    if "limits" in facts:
        print(f"\n{facts['limits']}")
    titles = ["ms a step", "", "tokens/s", "time / ours", "of the bf16 limit", "peak MiB"]
    print("\n" + head([shape.name, *titles]))
    for program in found:
        if program.why_not:
            print(row([program.name, f"not run: {program.why_not}", *[""] * 5]))
            continue
        median = statistics.median(program.seconds)
        spread = f"({min(program.seconds) * 1000:,.0f}-{max(program.seconds) * 1000:,.0f})"
        peak = program.facts.get("peak_mib")
        cells = [f"{median * 1000:,.0f}", spread, f"{shape.tokens / median:,.0f}"]
        share = "–"
        if "bf16_limit" in facts:
            share = f"{facts['step_flops'] / median / facts['bf16_limit']:.0%}"
        cells += [f"{program.ratio:.2f}", share]
        print(row([program.name, *cells, f"{peak:,.0f}" if peak else "–"]))
    for program in found:
        if used := program.facts.get("settings"):
            print(f"\n{program.name}: {used}")
    print(flush=True)


def overhead(shape: Shape, options: argparse.Namespace, scratch: Path) -> None:
    recipe = {"compile": "off"} if options.no_compile else {}
    program = Program("loop", "overhead", {"recipe": recipe, "steps": max(10, options.steps)})
    facts = _once(program, shape, scratch)
    whole = facts["whole"]
    parts = [f"{facts[key] / whole:.2%}" for key in ("model", "clipping", "optimizer", "rest")]
    print(row([shape.name, f"{whole * 1000:,.0f}", *parts]), flush=True)


def resume(shape: Shape, scratch: Path) -> None:
    folder = scratch / "run"
    for name, compiled in (("eager", "off"), ("compiled", "on")):
        # The first start makes the checkpoint, or fills the compiler's cache.
        for number in range(2):
            recipe = {"compile": compiled}
            given = {"recipe": recipe, "run": str(folder), "started": time.time()}
            facts = _once(Program(f"{name} {number}", "resume", given), shape, scratch)
        if not facts["messages"]:
            raise SystemExit(f"{shape.name} began anew instead of continuing")
        beyond = facts["imports"] + facts["rest"]
        keys = ("imports", "load", "rest", "step")
        cells = [f"{facts[key]:.2f}" for key in keys]
        size = f"{facts['checkpoint_mib']:,.0f}"
        print(row([f"{shape.name}, {name}", *cells, f"{beyond:.2f}", size]), flush=True)


def _once(program: Program, shape: Shape, scratch: Path) -> dict[str, Any]:
    child = Child(program, shape, scratch / program.name.replace(" ", "-"), _CPU)
    try:
        return child.answer()
    finally:
        child.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2, help="of each program in a round")
    parser.add_argument("--shape", choices=[*SHAPES, "all"], action="append", help="all: a, b, c")
    parser.add_argument("--only", nargs="*", metavar="WORD", help="ours, and whose name has one")
    parser.add_argument("--parts", action="store_true", help="also ours with single parts off")
    parser.add_argument("--no-compile", action="store_true", help="neither ours nor Trainer")
    parser.add_argument("--overhead", action="store_true", help="where a step of the loop goes")
    parser.add_argument("--resume", action="store_true", help="what continuing takes")
    parser.add_argument("--reference", action="store_true", help="a step that learns from one")
    where = Path(tempfile.gettempdir())
    for name in ("litgpt", "trl"):
        venv = where / f"{name}-venv"
        parser.add_argument(f"--{name}", type=Path, default=venv, help="its environment")
    parser.add_argument("--nanogpt", type=Path, help="a clone of it")
    options = parser.parse_args()
    named = options.shape or ["all"]
    shapes = [SHAPES[key] for key in (("a", "b", "c") if "all" in named else named)]
    print(f"{machine()}, {software(('inheritune', 'torch', 'transformers', 'accelerate'))}")
    no_peer = None
    if options.overhead:
        print("Medians, parts of a step; the rest is data, metrics, bookkeeping:\n")
        print(head(["", "ms a step", "model", "clipping", "optimizer", "rest"]), flush=True)
    elif options.resume:
        print("Seconds. Beyond model load: imports and the rest, without the first step itself:\n")
        titles = ["imports", "model load", "rest", "a step", "beyond model load", "checkpoint MiB"]
        print(head(["", *titles]), flush=True)
    else:
        venv, peer = (options.trl, TRL) if options.reference else (options.litgpt, LITGPT)
        no_peer = environment.install(venv, *peer, ("torch",))
        if not no_peer:
            print(f"beside it {environment.versions(venv, (peer[0], 'torch'))}")
    with tempfile.TemporaryDirectory(prefix="train-bench-") as name:
        for number, shape in enumerate(shapes):
            scratch = Path(name, str(number))
            if options.overhead:
                overhead(shape, options, scratch)
            elif options.resume:
                resume(shape, scratch)
            else:
                found = (
                    with_reference(shape, options.trl, no_peer)
                    if options.reference
                    else programs(options, shape, no_peer)
                )
                speed(shape, found, options, scratch)
            shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    main()
