"""What a cluster takes: half of the layers of a reference, distilled from the whole of it.

    python benchmarks/scale.py [--device h100] [--rate 2.5] [--mtbf HOURS] [--network BYTES]

References in the shapes of OpenLLaMA 3B, Llama 3.1 8B and 70B, whose files are holes; 1B, 50B and
1T tokens; 8 to 1,024 devices; sequences of 4,096 tokens, 1,024 of them in a step. Only headers are
read: it takes seconds and needs no device. Everything but the bytes is a projection: those were
counted between 1, 2 and 4 processes (tests/training/test_process_group.py).
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from inheritune.api import plan
from inheritune.reporting.quantities import data_size, duration

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from sparse_model import LLAMAS, write_llama

SIZES, TOKENS, DEVICES = ("3B", "8B", "70B"), ("1B", "50B", "1000B"), (8, 64, 1024)
COLUMNS = ("reference", "tokens", "devices", "memory each", "micro-batch", "fits", "time")
COLUMNS += ("device hours", "price", "waits", "lost", "one save")


def recipe_of(model: Path, size: str, tokens: str) -> dict[str, object]:
    """The recipe of a reference: half of its layers, one round."""
    train = {"tokens": tokens, "seq_len": 4096, "batch_tokens": 2**22}
    train |= {"micro_batch": "auto", "activation_checkpointing": "auto"}
    return {
        "name": f"scale-{size}",
        "reference": {"model": str(model)},
        "data": {"source": "stdlib", "allow_repeat": True},
        "inherit": {"layers": LLAMAS[size][2] // 2},
        "grow": {"max_rounds": 1},
        "train": train,
        "variants": {"inherit": {"start": "inherit", "distill": {}}},
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="h100")
    parser.add_argument("--rate", type=float, default=2.5, help="dollars per hour of a device")
    parser.add_argument("--mtbf", type=float, help="hours between failures of a device")
    parser.add_argument("--network", type=float, help="bytes per second between machines")
    given = vars(parser.parse_args())
    print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * 3 + "--:|---|---|" + "--:|" * 6)
    with tempfile.TemporaryDirectory() as scratch:
        for size in SIZES:
            model = write_llama(Path(scratch) / size, size)
            for tokens in TOKENS:
                path = Path(scratch) / "recipe.yaml"
                path.write_text(json.dumps(recipe_of(model, size, tokens)))
                made = plan(path, devices="8..1024", runs=scratch, progress=False, **given)
                for row in (r for r in made.clusters if r.devices in DEVICES):
                    cells = (size, tokens, f"{row.devices:,}", data_size(row.memory.total))
                    recomputed = ", recomputed" * row.recomputes
                    cells += (f"{row.micro_batch}{recomputed}",)
                    cells += ("yes" if row.fits else row.change or "no",)
                    cells += (duration(3600 * row.hours), f"{row.device_hours:,.0f}")
                    cells += (f"${row.dollars:,.0f}", f"{row.waiting:.1%}", f"{row.lost:.1%}")
                    print("| " + " | ".join((*cells, duration(row.save_s))) + " |")


if __name__ == "__main__":
    main()
