# /// script
# requires-python = ">=3.11"
# dependencies = ["inheritune", "huggingface_hub>=1.0"]  # or a wheel: "inheritune @ https://..."
# ///
"""One recipe as a Hugging Face Job, on one machine, with its run kept in a bucket of the Hub.

    hf buckets create OWNER/inheritune --private
    hf buckets cp recipe.yaml hf://buckets/OWNER/inheritune/recipe.yaml
    hf jobs uv run --flavor a100x4 --timeout 6h --secrets HF_TOKEN \
        examples/hf_job.py OWNER/inheritune --hours 5.8 --processes 4

A job's own disk is gone when it ends: runs/ is fetched from the bucket before and put back after.
The run is asked to stop before the job's time is up; it saves and ends with 75, which is passed on:
give the same command again. Not tried on the Hub here: a test reads the header and runs what does
not need it.
"""

import argparse
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

_SAVE_S = 600  # for a step and a save; `inheritune plan` says how long


def command(recipe: Path, processes: int) -> list[str]:
    """The command line of the run."""
    several = ["--processes", str(processes)] if processes > 1 else []
    return [sys.executable, "-m", "inheritune", "run", str(recipe), *several]


def run(words: Sequence[str], seconds: float) -> int:
    """Run a command; after so many seconds ask it to save and end. Returns its exit code."""
    process = subprocess.Popen(words)
    try:
        return process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
        return process.wait(timeout=_SAVE_S)


def main() -> int:
    """Fetch the run, go on with it, and put it back, whatever came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bucket", help="OWNER/NAME")
    parser.add_argument("--recipe", default="recipe.yaml", help="its name in the bucket")
    parser.add_argument("--hours", type=float, required=True, help="less than the job's --timeout")
    parser.add_argument("--processes", type=int, default=1, help="one for each GPU")
    given = parser.parse_args()
    bucket = f"hf://buckets/{given.bucket}"
    subprocess.run(["hf", "buckets", "sync", bucket, "."], check=True)
    try:
        return run(command(Path(given.recipe), given.processes), given.hours * 3600)
    finally:
        subprocess.run(["hf", "buckets", "sync", "runs", f"{bucket}/runs"], check=True)


if __name__ == "__main__":
    sys.exit(main())
