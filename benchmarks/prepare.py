"""Preparing tokens beside `datasets.map` with the same tokenizer and all cores.

    python benchmarks/prepare.py [--rounds 3] [--text FILE] [--tokenizer DIR]

Every program is a process of its own; programs take turns within a round. Ours reads, splits,
hashes, encodes, writes shards with fsync and measures the overlap. The other loads the rows into an
Arrow cache and maps them to input_ids; its time is given with and without that loading. Memory is
the largest sum over a process and its children; a page that they share counts in each (Linux).
Without the texts beside the checkout, text of that size is made up.
"""

import argparse
import gzip
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
NOVELS = SHARED / "text" / "novels_train.jsonl.gz"
GPT2 = SHARED / "tokenizers" / "gpt2"


def ours(text: Path, tokenizer: Path, folder: Path) -> dict[str, Any]:
    from inheritune.data.prepare_text import prepare_text
    from inheritune.data.tokenizer import open_tokenizer
    from inheritune.recipe.data import Data

    opened = open_tokenizer(tokenizer)
    began = time.perf_counter()
    data = Data(source=str(text), val_fraction=0.01)
    tokens = prepare_text(data, opened, opened.rows, 256, folder / "tokens")
    seconds = time.perf_counter() - began
    return {"tokens": tokens.train.num_ids + tokens.val.num_ids, "seconds": seconds}


def mapped(text: Path, tokenizer: Path, folder: Path) -> dict[str, Any]:
    import datasets
    from transformers import AutoTokenizer

    datasets.disable_progress_bars()
    opened = AutoTokenizer.from_pretrained(tokenizer)
    opened.model_max_length = 10**9
    cores = len(os.sched_getaffinity(0))

    def encode(batch: dict[str, list[str]]) -> dict[str, Any]:
        ids = opened(batch["text"], add_special_tokens=False, return_attention_mask=False)
        for document in ids["input_ids"]:
            document.append(opened.eos_token_id)
        return {"input_ids": ids["input_ids"], "length": [len(d) for d in ids["input_ids"]]}

    began = time.perf_counter()
    rows = datasets.load_dataset(
        "json", data_files=str(text), split="train", cache_dir=str(folder / "cache")
    )
    loaded = time.perf_counter()
    found = rows.map(encode, batched=True, num_proc=cores, remove_columns=rows.column_names)
    seconds = time.perf_counter() - began
    tokens = sum(found["length"])
    return {"tokens": tokens, "seconds": seconds, "seconds_map": seconds - (loaded - began)}


PROGRAMS = {"ours": ours, "datasets.map": mapped}


def made_up(path: Path, size: int = 59_000_000) -> Path:
    chooser = random.Random(0)
    words = ["".join(chooser.choices("etaoinshrdlu", k=chooser.randint(1, 9))) for _ in range(9999)]
    with gzip.open(path, "wt", compresslevel=1) as stream:
        while size > 0:
            text = " ".join(chooser.choices(words, k=3000)) + "."
            stream.write(json.dumps({"text": text}) + "\n")
            size -= len(text)
    return path


def own_tokenizer(text: Path, folder: Path) -> Path:
    from itertools import islice

    from inheritune.data.sources import open_sources
    from inheritune.data.tokenizer import train_tokenizer
    from inheritune.recipe.data import Data

    (source,) = open_sources(Data(source=str(text)))
    train_tokenizer((d.text for _, d in islice(source.read(), 100)), 8192, folder)
    return folder


def resident(pid: int) -> int:
    """Bytes in memory of a process and all below it."""
    try:
        size = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        below = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return 0
    return size + sum(resident(int(child)) for child in below)


def measured(program: str, text: Path, tokenizer: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["--program", program, "--text", str(text), "--tokenizer", str(tokenizer)]
        process = subprocess.Popen(
            [sys.executable, __file__, *arguments, "--folder", folder],
            stdout=subprocess.PIPE,
            text=True,
        )
        peak, ended = 0, threading.Event()

        def watch() -> None:
            nonlocal peak
            while not ended.wait(0.1):
                peak = max(peak, resident(process.pid))

        watcher = threading.Thread(target=watch)
        watcher.start()
        output, _ = process.communicate()
        ended.set()
        watcher.join()
    if process.returncode:
        raise SystemExit(f"{program} ended with {process.returncode}")
    return json.loads(output.splitlines()[-1]) | {"peak": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--program", choices=PROGRAMS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.program:
        print(json.dumps(PROGRAMS[given.program](given.text, given.tokenizer, given.folder)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = given.text or (NOVELS if NOVELS.exists() else made_up(folder / "text.jsonl.gz"))
        tokenizer = given.tokenizer or (
            GPT2 if GPT2.exists() else own_tokenizer(text, folder / "tokenizer")
        )
        found: dict[str, list[dict[str, Any]]] = {program: [] for program in PROGRAMS}
        for _ in range(given.rounds):
            for program in PROGRAMS:
                found[program].append(measured(program, text, tokenizer))
    print(f"{text.name}, {len(os.sched_getaffinity(0))} cores, {given.rounds} rounds, medians")
    for program, runs in found.items():
        seconds = statistics.median(run["seconds"] for run in runs)
        speed = statistics.median(run["tokens"] / run["seconds"] for run in runs)
        peak = max(run["peak"] for run in runs)
        line = f"{program:<14}{runs[0]['tokens']:>12,} tokens {seconds:7.1f} s"
        print(f"{line} {speed:>11,.0f} tokens/s  peak {peak / 2**20:,.0f} MiB")
    ratios = [
        (a["tokens"] / a["seconds"]) / (b["tokens"] / b["seconds"])
        for a, b in zip(found["ours"], found["datasets.map"], strict=True)
    ]
    alone = [
        (a["tokens"] / a["seconds"]) / (b["tokens"] / b["seconds_map"])
        for a, b in zip(found["ours"], found["datasets.map"], strict=True)
    ]
    print(f"ratio {statistics.median(ratios):.2f}, to the map alone {statistics.median(alone):.2f}")


if __name__ == "__main__":
    main()
