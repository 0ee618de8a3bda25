"""Show how a target is used: code that loads it, and the commands of the usual tools."""

import json
import shlex
from dataclasses import dataclass

from inheritune.run_record.record import RunRecord

_LONGEST = 200  # characters of a prompt


@dataclass(frozen=True)
class Usage:
    """How to use the target of a run."""

    path: str  # of the target, as seen from where the commands are given
    code: str  # Python
    commands: list[tuple[str, str]]  # purpose and command line
    note: str


def usage(record: RunRecord) -> Usage | None:
    """Show how to use the target; None before there is one."""
    recorded = (record.result.run or "").rstrip("/")
    if not record.result or not record.result.outcome:
        return None
    # A page names no absolute path: only the last part of one is left.
    run = recorded.removeprefix("…/") or "."
    path = "target" if run == "." else f"{run}/target"
    tasks = [task for task in record.evaluation.tasks if task.replace("_", "").isalnum()]
    quoted = shlex.quote(path)
    commands = [
        ("publish", f"inheritune push {shlex.quote(run)} --repo-id OWNER/NAME"),
        (
            "evaluate",
            f"lm_eval run --model hf --model_args pretrained={quoted} "
            f"--tasks {','.join(tasks[:8]) or 'piqa'}",
        ),
        ("llama.cpp", f"python convert_hf_to_gguf.py {quoted} --outfile target.gguf"),
    ]
    place = "the folder that holds the run"
    if not recorded.startswith("…/"):
        place = "the folder in which the run was started"
    return Usage(path, code(path, prompt_of(record)), commands, f"Paths are as seen from {place}.")


def prompt_of(record: RunRecord) -> str:
    """Return the recipe's first prompt, shortened, or one of ours."""
    prompts = record.recipe_section("report").get("prompts")
    first = prompts[0] if isinstance(prompts, list) and prompts else None
    return first[:_LONGEST] if isinstance(first, str) else "Once upon a time"


def code(path: str, prompt: str) -> str:
    """Write Python that loads a model directory and continues a prompt."""
    return (
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f"path = {as_code(path)}\n"
        "tokenizer = AutoTokenizer.from_pretrained(path)\n"
        "model = AutoModelForCausalLM.from_pretrained(path)\n"
        f'inputs = tokenizer({as_code(prompt)}, return_tensors="pt")\n'
        "output = model.generate(**inputs, max_new_tokens=40, do_sample=False)\n"
        "print(tokenizer.decode(output[0], skip_special_tokens=True))\n"
    )


def as_code(text: str) -> str:
    """Write a text as a Python literal on one line."""
    # The escapes of JSON are those of Python, and no line of a code block can end it.
    return json.dumps(text, ensure_ascii=False)
