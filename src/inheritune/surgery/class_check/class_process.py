"""Answer the questions of `ask_class`: the child process, started as ``python -m`` this module.

Each line of its input is a question, each line of its output an answer, both in JSON.
"""

import gc
import json
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from inheritune.errors import InherituneError
from inheritune.surgery.class_check.class_check import (
    compare_cut,
    counted_by_number,
    explicit_lists,
)
from inheritune.surgery.class_check.language_model import language_problem
from inheritune.surgery.class_check.text_model import text_model
from inheritune.surgery.class_check.tokenizer_ids import token_ids
from inheritune.surgery.class_check.weights_check import compare_outputs, initialise, reload

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]


QUESTIONS: dict[str, Callable[..., Any]] = {
    "compare_cut": compare_cut,
    "language_problem": language_problem,
    "text_model": text_model,
    "counted_by_number": counted_by_number,
    "explicit_lists": explicit_lists,
    "initialise": initialise,
    "compare_outputs": compare_outputs,
    "reload": reload,
    "token_ids": token_ids,
}
_WITH_WEIGHTS = ("initialise", "compare_outputs", "reload")
_IDLE_S = 60.0
# Models on the meta device take megabytes. More means that a number in a config is absurd.
_MEMORY_LIMIT = 4 * 2**30


def main() -> None:
    """Answer questions until none has come for a minute."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print must not be taken for an answer
    # Ctrl-C is for the parent; this process ends with it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _import_libraries()
    for line in _lines():
        answers.write(json.dumps(_answer(json.loads(line))) + "\n")
        answers.flush()
    os._exit(0)  # a regular exit spends a second on taking torch apart


def _import_libraries() -> None:
    # Garbage collection costs a quarter of the import time, for objects that are there to stay.
    gc.disable()
    import transformers.modeling_utils  # noqa: F401
    from transformers.utils import logging

    gc.freeze()
    gc.enable()
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _lines() -> Iterator[bytes]:
    while os.name != "posix" or select.select([0], [], [], _IDLE_S)[0]:
        if not (line := sys.stdin.buffer.readline()):
            return
        yield line


@contextmanager
def _limited_memory() -> Iterator[None]:
    if resource is None:
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_DATA)
    unlimited = before[1] == resource.RLIM_INFINITY
    limit = _MEMORY_LIMIT if unlimited else min(before[1], _MEMORY_LIMIT)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def find_answer(question: str) -> Callable[..., Any]:
    """Return the function that answers: one of `QUESTIONS`, or ``module:name`` of a higher room."""
    module, _, name = question.rpartition(":")
    answer: Callable[..., Any] = (
        getattr(import_module(module), name) if module else QUESTIONS[question]
    )
    return answer


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    question = request.pop("question")
    try:
        answer = find_answer(question)
        if question in _WITH_WEIGHTS or ":" in question:  # those of higher rooms limit themselves
            return {"answer": answer(**request)}
        with _limited_memory():
            return {"answer": answer(**request)}
    except MemoryError:
        message = "the model's class wants too much memory."
        hint = "A number in its config may be absurd."
        return {"error": "SourceError", "message": message, "hint": hint}
    except InherituneError as error:
        return {"error": type(error).__name__, "message": error.message, "hint": error.hint}
    except Exception:  # our own mistake: the parent reports it as one
        return {"bug": traceback.format_exc()}


if __name__ == "__main__":
    main()
