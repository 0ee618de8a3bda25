"""The child process of `gate`: one question for each line of its input, one answer for each.

Questions and answers are JSON. This is `python -m inheritune.surgery.class_check.class_process`.
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
from typing import Any

from inheritune.errors import InherituneError
from inheritune.surgery.class_check import class_check as model_class
from inheritune.surgery.class_check import weights_check as live_model

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

__all__ = ["main"]

_IDLE_S = 60.0
# Models on the meta device take megabytes. More is the work of a number in a config.
_MOST_BYTES = 4 * 2**30
_LARGE = ("initialise", "prove", "reload")  # questions about real weights


def main() -> None:
    """Answer questions until there are none for a minute."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print must not be taken for an answer
    # Ctrl-C is for the parent; this process ends with it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _import_libraries()
    for line in _lines():
        answers.write(json.dumps(_answer(json.loads(line))) + "\n")
        answers.flush()
    os._exit(0)  # taking torch apart again takes a second


def _import_libraries() -> None:
    # A quarter of the time goes into looking for garbage among objects that are there to stay.
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
def _limited(limited: bool) -> Iterator[None]:
    if not limited or resource is None:
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_DATA)
    most = _MOST_BYTES if before[1] == resource.RLIM_INFINITY else min(before[1], _MOST_BYTES)
    resource.setrlimit(resource.RLIMIT_DATA, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    questions: dict[str, Callable[..., Any]] = {
        "compare_cut": model_class.compare_cut,
        "explicit_lists": model_class.explicit_lists,
        "initialise": live_model.initialise,
        "prove": live_model.prove,
        "reload": live_model.reload,
    }
    question = request.pop("question")
    try:
        with _limited(question not in _LARGE):
            return {"answer": questions[question](**request)}
    except MemoryError:
        said = "the model's class wants too much memory."
        hint = "A number in its config may be absurd."
        return {"error": "SourceError", "message": said, "hint": hint}
    except InherituneError as error:
        return {"error": type(error).__name__, "message": error.message, "hint": error.hint}
    except Exception:  # our own mistake: the parent reports it as one
        return {"bug": traceback.format_exc()}


if __name__ == "__main__":
    main()
