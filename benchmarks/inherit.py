"""Cutting a checkpoint beside `cp`, transformers and mergekit: whole commands, taking turns.

    python benchmarks/inherit.py [--rounds 5] [--size full|small] [--families] [--out DIR]

Keeps the first half of the layers of a generated Llama of 2.2 GB in bf16 (22 layers, 3 shards) from
a warm page cache. Every round runs every command once, in another order; a ratio is the median of
the rounds' ratios. What a command wrote is compared with the reference's bytes once. Needs 8 GB of
disk; mergekit gets an environment of its own (--mergekit DIR), made when it is missing.

`--families` instead cuts ten tiny models with inheritune and with mergekit, and says who was right.
"""

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from cutting import peer
from cutting.measure import Run, run
from measuring.disk import copy_speed
from measuring.table import head, machine, row, software

_HERE = Path(__file__).parent / "cutting"
_INHERITUNE = Path(sys.executable).parent / "inheritune"
_IMPORTS = "from transformers import AutoModelForCausalLM; AutoModelForCausalLM.from_pretrained"
_LAYERS = {"full": 22, "small": 8}
_NEEDED = {"full": 8 * 10**9, "small": 2 * 10**9}  # bytes of disk


@dataclass
class Program:
    """A command: what it is called, how it is written, what it should have written."""

    name: str
    command: Callable[[Path], list[str | Path]]
    expected: dict[str, object] | None = None  # digests by name; None: not looked at
    layers: int = 0
    runs: list[Run] = field(default_factory=list)
    verdict: str = "–"


def speed(scratch: Path, options: argparse.Namespace) -> None:
    programs = _programs(scratch, options)
    copied = _needs("inherit, for cp to copy", programs[0].command(scratch / "cut"), scratch)
    size = sum(path.stat().st_size for path in (scratch / "cut").iterdir())
    print(f"one warm-up of inherit: {copied.seconds:.2f} s, {size / 1e9:.2f} GB", flush=True)
    order = random.Random(0)
    for number in range(options.rounds):
        for program in order.sample(programs, len(programs)):
            _take_turn(program, scratch, check=number == 0)
            print(
                f"round {number + 1}: {program.name}: {program.runs[-1].seconds:.2f} s", flush=True
            )
    _print_table(programs, options, size)


def _programs(scratch: Path, options: argparse.Namespace) -> list[Program]:
    size, kept = options.size, _LAYERS[options.size] // 2
    for name in {size, "small"}:
        make: list[str | Path] = [
            sys.executable,
            _HERE / "checkpoint.py",
            "make",
            scratch / name,
            name,
        ]
        _needs(f"the {name} checkpoint", make, scratch)
    reference, small = scratch / size, scratch / "small"
    right = _kept(_digests(reference), kept)
    right_fp16 = _kept(_digests(reference, "--fp16"), kept)

    def ours(source: Path, layers: int, *flags: str) -> Callable[[Path], list[str | Path]]:
        return lambda out: [_INHERITUNE, "inherit", source, str(layers), out, *flags]

    script = _HERE / "with_transformers.py"
    sync: list[str | Path] = ["sh", "-c", 'cp -r "$0" "$1" && sync "$1"/* "$1"', scratch / "cut"]
    mergekit = Program(
        "mergekit passthrough",
        lambda out: peer.passthrough(options.mergekit, reference, kept, out, "bfloat16"),
        right,
        kept,
    )
    start = Program("mergekit-yaml --help", lambda out: [peer.program(options.mergekit), "--help"])
    if why := peer.install(options.mergekit):
        mergekit = start = Program(f"mergekit: not run: {why}", lambda out: ["true"])
    return [
        Program("inherit", ours(reference, kept), right, kept),
        Program("inherit --no-class-check", ours(reference, kept, "--no-class-check"), right, kept),
        Program("inherit --sha256", ours(reference, kept, "--sha256"), right, kept),
        Program("inherit --dtype fp16", ours(reference, kept, "--dtype", "fp16"), right_fp16, kept),
        Program("inherit, of 0.3 GB", ours(small, 4)),
        Program("inherit --no-class-check, of 0.3 GB", ours(small, 4, "--no-class-check")),
        Program("inherit --help", lambda out: [_INHERITUNE, "inherit", "--help"]),
        Program("cp", lambda out: ["cp", "-r", scratch / "cut", out]),
        Program("cp, synced", lambda out: [*sync, out], right, kept),
        Program(
            "transformers: load, cut, save",
            lambda out: [sys.executable, script, reference, str(kept), out],
            right,
            kept,
        ),
        Program("transformers: imports", lambda out: [sys.executable, "-c", _IMPORTS]),
        mergekit,
        *([] if start is mergekit else [start]),
    ]


def _take_turn(program: Program, scratch: Path, check: bool) -> None:
    out = scratch / "out"
    os.sync()  # what the one before left to be written is not this one's
    taken = run(program.command(out), scratch / "log")
    program.runs.append(taken)
    if taken.code:
        program.verdict = (
            f"failed with {taken.code}: {(taken.output.splitlines() or [''])[-1][:80]}"
        )
    elif check and program.expected is not None:
        program.verdict = _compare(out, program.expected, program.layers)
    shutil.rmtree(out, ignore_errors=True)


# -- what was written


def _digests(directory: Path, *flags: str) -> dict[str, object]:
    command: list[str | Path] = [
        sys.executable,
        _HERE / "checkpoint.py",
        "digests",
        directory,
        *flags,
    ]
    return dict(json.loads(subprocess.check_output(command)))


def _kept(tensors: dict[str, object], layers: int) -> dict[str, object]:
    def belongs(name: str) -> bool:
        parts = name.split(".")
        return parts[1] != "layers" or int(parts[2]) < layers

    return {name: facts for name, facts in tensors.items() if belongs(name)}


def _compare(out: Path, expected: dict[str, object], layers: int) -> str:
    found = _digests(out)
    if missing := sorted(expected.keys() - found.keys()):
        return f"wrong: lacks {len(missing)} tensors, such as {missing[0]}"
    if extra := sorted(found.keys() - expected.keys()):
        return f"wrong: {len(extra)} tensors too many, such as {extra[0]}"
    if differing := sorted(name for name, facts in expected.items() if found[name] != facts):
        return f"wrong: {len(differing)} tensors differ, such as {differing[0]}"
    depth = json.loads((out / "config.json").read_text("utf-8"))["num_hidden_layers"]
    return "right" if depth == layers else f"wrong: its config says {depth} layers"


def _needs(what: str, command: list[str | Path], scratch: Path) -> Run:
    done = run(command, scratch / "log")
    if done.code:
        raise SystemExit(f"{what} failed:\n{done.output}")
    return done


# -- tables


def _print_table(programs: list[Program], options: argparse.Namespace, size: int) -> None:
    by_name = {program.name: program for program in programs}
    bases = ("cp", "cp, synced", "inherit", "inherit --no-class-check")
    limit = copy_speed(options.out)
    inherit = statistics.median(one.seconds for one in by_name["inherit"].runs)
    print(f"\n{_machine(options)}")
    print(f"a file is copied at {limit / 1e9:.1f} GB/s here; inherit: {size / inherit / limit:.0%}")
    print(
        f"{options.rounds} rounds, {_LAYERS[options.size] // 2} of {_LAYERS[options.size]} layers, "
        f"{size / 1e9:.2f} GB kept; medians, (least-most), medians of the rounds' ratios:\n"
    )
    titles = ["command", "s", "", *(f"/ {base}" for base in bases)]
    titles += ["own peak MiB", "its child's", "tensors"]
    print(head(titles))
    for program in programs:
        if "not run" in program.name:
            print(row([program.name, *[""] * (len(titles) - 1)]))
            continue
        times = [one.seconds for one in program.runs]
        spread = f"({min(times):.2f}-{max(times):.2f})"
        ratios = [f"{_ratio(program, by_name[base]):.2f}" for base in bases]
        own = max(one.own_mib for one in program.runs)
        child = max((one.child_mib or 0.0 for one in program.runs), default=0.0)
        peaks = [f"{own:.0f}", f"{child:.0f}" if child else "–"]
        median = f"{statistics.median(times):.2f}"
        print(row([program.name, median, spread, *ratios, *peaks, program.verdict]))


def _ratio(program: Program, base: Program) -> float:
    pairs = zip(program.runs, base.runs, strict=True)
    return statistics.median(mine.seconds / other.seconds for mine, other in pairs)


def _machine(options: argparse.Namespace) -> str:
    other = (
        "" if peer.install(options.mergekit) else f"; beside it {peer.versions(options.mergekit)}"
    )
    ours = ("inheritune", "torch", "transformers", "safetensors")
    return f"{machine()}, {_file_system(options.out)}, {software(ours)}{other}."


def _file_system(directory: Path) -> str:
    found = subprocess.run(
        ["df", "--output=fstype", directory], capture_output=True, text=True, check=False
    )
    return (found.stdout.split() or ["file system unknown"])[-1]


def families(scratch: Path, options: argparse.Namespace) -> None:
    program = _HERE / "families.py"
    _needs("building", [sys.executable, program, "build", scratch / "whole"], scratch)
    why = peer.install(options.mergekit)
    print(f"{_machine(options)}\n")
    print(head(["first half of", "layers", "inheritune", "mergekit"]), flush=True)
    for whole in sorted((scratch / "whole").iterdir()):
        config = json.loads((whole / "config.json").read_text("utf-8"))
        total = int(config.get("num_hidden_layers") or config["n_layer"])
        cut = scratch / f"{whole.name}-ours"
        verdicts = [
            _verdict([_INHERITUNE, "inherit", whole, str(total // 2), cut], whole, cut, total // 2)
        ]
        out = scratch / f"{whole.name}-mergekit"
        command = peer.passthrough(options.mergekit, whole, total // 2, out, "float32")
        verdicts.append(f"not run: {why}" if why else _verdict(command, whole, out, total // 2))
        print(row([whole.name, f"{total // 2} of {total}", *verdicts]), flush=True)


def _verdict(command: list[str | Path], whole: Path, cut: Path, layers: int) -> str:
    log = cut.parent / "log"
    done = run(command, log)
    if done.code:
        written = "after writing weights" if any(cut.glob("*.safetensors")) else "nothing written"
        last = (done.output.splitlines() or [""])[-1].strip()[:100]
        return f"crash, {written}: {last}"
    program = _HERE / "families.py"
    judged = run([sys.executable, program, "judge", whole, cut, str(layers)], log)
    if judged.code:
        raise SystemExit(f"judging {cut.name} failed:\n{judged.output}")
    answer = judged.output.splitlines()[-1]
    return answer if answer == "right" else f"silently wrong: {answer}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", choices=_LAYERS, default="full", help="2.2 GB, or 0.3 GB")
    parser.add_argument("--families", action="store_true", help="ten tiny models instead")
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir()), help="for scratch")
    where = Path(tempfile.gettempdir()) / "mergekit-venv"
    parser.add_argument("--mergekit", type=Path, default=where, help="its environment")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(options.out).free
    if free < _NEEDED[options.size]:
        raise SystemExit(
            f"{options.out} has {free / 1e9:.1f} GB free, of {_NEEDED[options.size] / 1e9:.0f} "
            "needed. Name another directory with --out."
        )
    with tempfile.TemporaryDirectory(prefix="inherit-bench-", dir=options.out) as scratch:
        (families if options.families else speed)(Path(scratch), options)


if __name__ == "__main__":
    main()
