"""A run directory as `run` leaves it, made up: for the tests of the report."""

import copy
import json
import math
from pathlib import Path
from typing import Any

RECORD: dict[str, Any] = {
    "format": 1,
    "name": "demo",
    "status": "done",
    "started_at": "2026-11-21T06:40:00Z",
    "finished_at": "2026-11-21T06:43:32Z",
    "seconds": 212.4,
    "exit_code": 0,
    "error": None,
    "recipe": {
        "name": "demo",
        "reference": {"model": "embedded:demo", "revision": None, "train": None},
        "inherit": {"layers": 4},
        "data": {"source": "stdlib", "split_by": "name"},
        "train": {"tokens": 1_000_000, "seq_len": 256, "seed": 0, "betas": [0.9, 0.95]},
        "grow": {"add": 2, "tolerance": 0.0},
        "variants": {
            "inherit": {"start": "inherit", "layers": None, "tokens": None},
            "scratch": {"start": "fresh", "layers": None, "tokens": None},
            "equal-compute": {"start": "fresh", "layers": None, "tokens": "equal_compute"},
        },
        "report": {"prompts": ["def "]},
    },
    "origins": {"train.tokens": "file", "train.seed": "default", "grow.add": "--set"},
    "versions": {
        "inheritune": "0.1.0",
        "python": "3.11.7",
        "torch": "2.13.0",
        "transformers": "5.23.0",
    },
    "machine": {
        "processor": "AMD EPYC",
        "cores": 2,
        "memory_bytes": 25_000_000_000,
        "device": "cpu",
        "system": "Linux",
    },
    "settings": {
        "precision": "bf16",
        "attention": "matmul",
        "compile": False,
        "fused_optimizer": True,
        "keep_large_blocks": True,
        "reasons": {"compile": "600K tokens train in under two minutes"},
    },
    "reference": {
        "model": "embedded:demo",
        "layers": 8,
        "params": 3_900_000,
        "digest": "3f7a" * 16,
        "trained_tokens": 30_000_000,
        "trained_here": False,
        "curve": [
            {"tokens": t, "val_loss": round(2.1 + 3.4 * math.exp(-((t / 2.4e6) ** 0.55)), 4)}
            for t in (250_000, 500_000, 1_000_000, 2_000_000, 4_000_000, 8_000_000, 16_000_000)
        ]
        + [{"tokens": 30_000_000, "val_loss": 2.1}],
    },
    "tokens": {
        "train_tokens": 3_066_099,
        "val_tokens": 51_583,
        "documents": 609,
        "val_documents": 24,
        "fingerprint": "c0ffee" * 8,
        "source": "stdlib",
        "overlap": {
            "duplicate_documents": 0.0,
            "ngram": 13,
            "share": 0.0214,
            "method": "share of 13-token sequences of the held-out text found in the training text",
        },
    },
    "benchmark": {"val_loss": 2.1004, "val_loss_se": 0.031, "windows": 200, "bits_per_byte": 1.01},
    "rounds": [
        {
            "round": 1,
            "layers": 4,
            "params": 2_000_000,
            "tokens": 1_000_000,
            "epochs": 0.33,
            "start_val_loss": 5.312,
            "val_loss": 2.2131,
            "val_loss_se": 0.0312,
            "difference": 0.1127,
            "difference_se": 0.0042,
            "outcome": "not_matched",
            "seconds": 60.1,
            "flops": 1.2e13,
            "path": "variants/inherit/4-layers",
        },
        {
            "round": 2,
            "layers": 6,
            "params": 2_900_000,
            "tokens": 1_000_000,
            "epochs": 0.33,
            "start_val_loss": 3.905,
            "val_loss": 2.0931,
            "val_loss_se": 0.0307,
            "difference": -0.0073,
            "difference_se": 0.0038,
            "outcome": "matched",
            "seconds": 84.9,
            "flops": 1.7e13,
            "path": "variants/inherit/6-layers",
        },
    ],
    "variants": [
        {
            "name": "reference",
            "start": "trained",
            "layers": 8,
            "params": 3_900_000,
            "tokens": 30_000_000,
            "val_loss": 2.1004,
            "val_loss_se": 0.031,
            "seconds": None,
            "flops": 6.9e14,
            "path": None,
        },
        {
            "name": "inherit",
            "start": "inherit",
            "layers": 6,
            "params": 2_900_000,
            "tokens": 2_000_000,
            "val_loss": 2.0931,
            "val_loss_se": 0.0307,
            "seconds": 145.0,
            "flops": 2.9e13,
            "path": "variants/inherit/6-layers",
        },
        {
            "name": "scratch",
            "start": "fresh",
            "layers": 6,
            "params": 2_900_000,
            "tokens": 1_000_000,
            "val_loss": 2.9148,
            "val_loss_se": 0.0351,
            "seconds": 83.0,
            "flops": 1.7e13,
            "path": "variants/scratch/6-layers",
        },
        {
            "name": "equal-compute",
            "start": "fresh",
            "layers": 6,
            "params": 2_900_000,
            "tokens": 1_705_882,
            "val_loss": 2.6214,
            "val_loss_se": 0.0337,
            "seconds": 141.0,
            "flops": 2.9e13,
            "path": "variants/equal-compute/6-layers",
        },
    ],
    "ledger": [
        {
            "item": "reference training",
            "tokens": 30_000_000,
            "flops": 6.9e14,
            "seconds": 3600,
            "borrowed": True,
        },
        {
            "item": "benchmark",
            "tokens": 51_583,
            "flops": 4e11,
            "seconds": 2.0,
            "borrowed": False,
        },
        {
            "item": "inherit, round 1, 4 layers",
            "tokens": 1_000_000,
            "flops": 1.2e13,
            "seconds": 60.1,
            "borrowed": False,
        },
        {
            "item": "inherit, round 2, 6 layers",
            "tokens": 1_000_000,
            "flops": 1.7e13,
            "seconds": 84.9,
            "borrowed": False,
        },
        {
            "item": "scratch, 6 layers",
            "tokens": 1_000_000,
            "flops": 1.7e13,
            "seconds": 83.0,
            "borrowed": False,
        },
        {
            "item": "equal-compute, 6 layers",
            "tokens": 1_705_882,
            "flops": 2.9e13,
            "seconds": 141.0,
            "borrowed": False,
        },
    ],
    "samples": [
        {
            "model": "reference",
            "prompt": "def ",
            "text": "def __init__(self, name, default=None):\n        self.name = name\n",
        },
        {
            "model": "target",
            "prompt": "def ",
            "text": "def __init__(self, value):\n        self._value = value\n        return\n",
        },
        {"model": "scratch", "prompt": "def ", "text": "def (self, self, se):\n   if x in x <x:\n"},
    ],
    "notes": ["The learning rate is 0.5 × the paper's.", "A single seed."],
    "result": {
        "outcome": "matched",
        "layers": 6,
        "reference_layers": 8,
        "rounds": 2,
        "benchmark": 2.1004,
        "val_loss": 2.0931,
        "val_loss_se": 0.0307,
        "gap_closed": 1.009,
        "tokens": 4_757_465,
        "flops": 7.54e13,
        "seconds": 212.4,
        "variants": [],
        "run": "runs/demo",
        "target": "runs/demo/target",
        "report": "runs/demo/report/index.html",
    },
}
_TRAININGS = [  # folder, tokens, val_loss at start and end
    ("inherit/4-layers", 1_000_000, 5.312, 2.2131),
    ("inherit/6-layers", 1_000_000, 3.905, 2.0931),
    ("scratch/6-layers", 1_000_000, 7.642, 2.9148),
    ("equal-compute/6-layers", 1_705_882, 7.642, 2.6214),
]


def record(**changes: Any) -> dict[str, Any]:
    """A finished run's record, with some fields replaced."""
    return copy.deepcopy(RECORD) | changes


def metrics(tokens: int, start: float, end: float, steps: int = 100, evals: int = 10) -> str:
    """metrics.jsonl of one training that falls from one loss to another."""
    lines = []
    for step in range(steps + 1):
        done = step / steps
        floor = (math.exp(-6 * done) - math.exp(-6)) / (1 - math.exp(-6))
        value = round(end + (start - end) * floor, 4)
        row = {
            "step": step,
            "tokens": round(tokens * done),
            "epoch": round(0.33 * done, 3),
            "loss": None if step == 0 else value,
            "val_loss": value if step * evals % steps == 0 else None,
            "grad_norm": 0.9,
            "learning_rate": 0.001,
            "tokens_per_s": 12_000.0,
            "memory_bytes": 900_000_000,
            "elapsed_s": round(60 * done, 2),
        }
        lines.append(json.dumps(row))
    return "\n".join(lines) + "\n"


def build_run(root: Path, content: dict[str, Any] | None = None) -> Path:
    """Write a finished run below ``root``."""
    run = root / "demo"
    run.mkdir(parents=True)
    (run / "run.json").write_text(json.dumps(record() if content is None else content))
    for folder, tokens, start, end in _TRAININGS:
        (run / "variants" / folder).mkdir(parents=True)
        (run / "variants" / folder / "metrics.jsonl").write_text(metrics(tokens, start, end))
    return run
