"""Tasks asked here beside plain `lm_eval.simple_evaluate`: same model, questions, batch and dtype.

    python benchmarks/evaluate.py [--rounds 3] [--limit 100] [--batch-size 16] [--dtype fp32]
        [--tasks piqa,arc_easy] [--model DIR] [--task-data DIR] [--random]

Every program is a process of its own; programs take turns within a round, every second one in the
other order. A command is the whole process: its start, imports, finding the tasks, reading the
questions, the model, the answers. Answering alone is the time inside
`lm_eval.evaluator.evaluate`, which both call. Plain means as it comes: its default TaskManager
indexes every description that lm-eval has; ours reads the ones asked for. Both get the same
descriptions of local questions, and must give the same scores. A ratio is the median of the rounds'
ratios, theirs by ours: above 1, ours is faster. Without stories260K beside the checkout, or with
--random, a small model of random weights is made,
and without the questions, some are made up.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from measuring.table import head, machine, row, software

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
STORIES = SHARED / "checkpoints" / "stories260K"
TASKS = SHARED / "tasks"
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


@contextmanager
def answering() -> Iterator[list[float]]:
    """Seconds of every call of lm-eval's evaluate inside the block."""
    import lm_eval.evaluator

    spent: list[float] = []
    asked = lm_eval.evaluator.evaluate

    def timed(*args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        try:
            return asked(*args, **kwargs)
        finally:
            spent.append(time.perf_counter() - began)

    lm_eval.evaluator.evaluate = timed
    try:
        yield spent
    finally:
        lm_eval.evaluator.evaluate = asked


def ours(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    from inheritune.evaluation.evaluate import evaluate
    from inheritune.evaluation.request import EvaluationRequest

    request = EvaluationRequest(
        tasks=given.tasks.split(","),
        shots=0,
        limit=given.limit,
        batch_size=given.batch_size,
        dtype=given.dtype,
        task_data=given.task_data,
    )
    with answering() as spent:
        result = evaluate([str(given.model)], request, folder)
    if result.failures:
        raise SystemExit(f"not asked: {result.failures}")
    scores = {
        score.task: {name: metric.value for name, metric in score.metrics.items()}
        for score in result.models[0].scores
    }
    return {"answering": sum(spent), "scores": scores}


def plain(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    import torch
    from lm_eval import simple_evaluate

    with answering() as spent:
        result = simple_evaluate(
            model="hf",
            model_args={"pretrained": str(given.model), "dtype": DTYPES[given.dtype]},
            tasks=[str(given.descriptions / f"{task}.yaml") for task in given.tasks.split(",")],
            num_fewshot=0,
            device="cuda" if torch.cuda.is_available() else "cpu",
            batch_size=given.batch_size,
            limit=given.limit,
        )
    scores = {
        task: {
            name.removesuffix(",none"): value
            for name, value in found.items()
            if name.endswith(",none") and "_stderr" not in name
        }
        for task, found in result["results"].items()
    }
    return {"answering": sum(spent), "scores": scores}


PROGRAMS = {"ours": ours, "simple_evaluate": plain}


def random_model(folder: Path) -> Path:
    """Four layers of a Llama with random weights, and the tokenizer of the package."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from inheritune.model_files.directory import open_model

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(open_model("embedded:demo").path)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=172,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=512,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def made_up(folder: Path, count: int = 200) -> Path:
    """Questions in the fields of piqa and arc_easy; nobody knows the answers."""
    folder.mkdir()
    chooser = random.Random(0)

    def words(number: int) -> str:
        return " ".join("".join(chooser.choices("etaoinshr", k=5)) for _ in range(number))

    def piqa() -> dict[str, Any]:
        return {"goal": words(8), "sol1": words(20), "sol2": words(20), "label": 1}

    def arc_easy(number: int) -> dict[str, Any]:
        choices = {"text": [words(4) for _ in "ABCD"], "label": list("ABCD")}
        return {"id": str(number), "question": words(20), "choices": choices, "answerKey": "B"}

    rows = {"piqa": [piqa() for _ in range(count)], "arc_easy": list(map(arc_easy, range(count)))}
    for task, questions in rows.items():
        lines = "".join(json.dumps(question) + "\n" for question in questions)
        (folder / f"{task}.jsonl").write_text(lines, encoding="utf-8")
    return folder


def describe(tasks: Sequence[str], data: Path, folder: Path) -> Path:
    """lm-eval's descriptions of the tasks with the local questions, as ours are asked, too."""
    from lm_eval.tasks._yaml_loader import load_yaml

    from inheritune.evaluation.task_files import local_data, stock_file, write_description

    folder.mkdir()
    for task in tasks:
        stock, questions = stock_file(task), local_data(data, task)
        if stock is None or questions is None:
            raise SystemExit(f"there are no local questions of {task} in {data}")
        write_description(
            task, stock, dict(load_yaml(stock, resolve_func=False)), questions, 0, folder
        )
    return folder


def measured(program: str, given: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        options = {
            "--model": given.model,
            "--task-data": given.task_data,
            "--descriptions": given.descriptions,
            "--tasks": given.tasks,
            "--limit": given.limit,
            "--batch-size": given.batch_size,
            "--dtype": given.dtype,
            "--folder": folder,
        }
        command = [sys.executable, __file__, "--program", program]
        command += [str(part) for option in options.items() for part in option]
        offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": f"{folder}/datasets"}
        began = time.perf_counter()
        done = subprocess.run(
            command, env=os.environ | offline, capture_output=True, text=True, check=False
        )
        seconds = time.perf_counter() - began
    if done.returncode:
        last = (done.stderr.strip() or "nothing").splitlines()[-1]
        raise SystemExit(f"{program} ended with {done.returncode}: {last}")
    return json.loads(done.stdout.splitlines()[-1]) | {"command": seconds}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit", type=int, default=100, help="questions of each task")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    parser.add_argument("--tasks", default="piqa,arc_easy")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--task-data", type=Path)
    parser.add_argument("--random", action="store_true", help="a made model, made up questions")
    parser.add_argument("--program", choices=PROGRAMS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--descriptions", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    given = parse()
    if given.program:
        print(json.dumps(PROGRAMS[given.program](given, given.folder)))
        return
    found: dict[str, list[dict[str, Any]]] = {program: [] for program in PROGRAMS}
    with tempfile.TemporaryDirectory() as name:
        folder, real = Path(name), not given.random
        given.model = given.model or (
            STORIES if real and STORIES.is_dir() else random_model(folder / "random-model")
        )
        given.task_data = given.task_data or (
            TASKS if real and TASKS.is_dir() else made_up(folder / "tasks")
        )
        given.descriptions = describe(
            given.tasks.split(","), given.task_data, folder / "descriptions"
        )
        for number in range(given.rounds):
            for program in list(PROGRAMS) if number % 2 == 0 else reversed(PROGRAMS):
                found[program].append(measured(program, given))
    first, second = (runs[0]["scores"] for runs in found.values())
    if first != second:
        raise SystemExit(f"the scores differ: {first} and {second}")
    show(given, found)


def show(given: argparse.Namespace, found: dict[str, list[dict[str, Any]]]) -> None:
    print(machine())
    print(software(["lm_eval", "torch", "transformers"]))
    print(f"{given.model.name}, {given.tasks}, first {given.limit} of each, {given.rounds} rounds")
    print(f"batch {given.batch_size}, {given.dtype}; medians, seconds; the same scores\n")
    print(head(["", *PROGRAMS, "ratio"]))
    for what in ("command", "answering"):
        seconds = [[run[what] for run in runs] for runs in found.values()]
        ratio = statistics.median(theirs / own for own, theirs in zip(*seconds, strict=True))
        print(row([what, *(f"{statistics.median(s):.2f}" for s in seconds), f"{ratio:.2f}"]))


if __name__ == "__main__":
    main()
