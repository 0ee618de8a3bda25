"""A few questions in the fields that lm-eval's tasks read, for tests without a network."""

import json
from pathlib import Path
from typing import Any

WORDS = ["the", "small", "model", "learns", "what", "large", "one", "knew"]


def _piqa(i: int) -> dict[str, Any]:
    return {"goal": f"{WORDS[i]} model", "sol1": WORDS[i - 1], "sol2": WORDS[i - 2], "label": i % 2}


def _arc(i: int) -> dict[str, Any]:
    choices = {"text": [WORDS[i], WORDS[i - 1]], "label": ["A", "B"]}
    return {"id": str(i), "question": f"what {i}?", "choices": choices, "answerKey": "AB"[i % 2]}


def _lambada(i: int) -> dict[str, Any]:
    return {"text": " ".join(WORDS[: i + 2])}


def _wikitext(i: int) -> dict[str, Any]:
    return {"page": f" = Page {i} = \n {' '.join(WORDS)} .\n"}


def _winogrande(i: int) -> dict[str, Any]:
    sentence = f"the model met the {WORDS[i]} and _ knew."
    return {"sentence": sentence, "option1": "model", "option2": WORDS[i], "answer": str(1 + i % 2)}


MAKERS = {
    "piqa": _piqa,
    "winogrande": _winogrande,
    "arc_easy": _arc,
    "lambada_openai": _lambada,
    "wikitext": _wikitext,
}


def write_tasks(folder: Path, *names: str, questions: int = 6) -> Path:
    """Write ``<task>.jsonl`` of some tasks, or of all that are known here."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names or MAKERS:
        lines = [json.dumps(MAKERS[name](i)) for i in range(questions)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return folder
