"""Questions to a model's own class, asked in a child process so that this one stays small.

The child imports torch and transformers, which takes seconds, and answers within a second; it
lives on for a minute, for the next question.
"""

import atexit
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from typing import Any

from inheritune import errors
from inheritune.errors import SourceError
from inheritune.model_files.directory import ModelDirectory
from inheritune.model_files.safetensors import Tensor

__all__ = ["ask", "check_cut", "check_whole"]

_ASKING = threading.RLock()  # one child, one question at a time
_COMMAND = ["-m", "inheritune.surgery.class_check.class_process"]
_PATIENCE_S = 900.0  # for one answer; loading and running a large model takes minutes


def check_cut(
    reference: ModelDirectory,
    kept: Sequence[int],
    config: Mapping[str, Any],
    tensors: Iterable[Any],
    prefix: str | None = None,
) -> dict[str, Any]:
    """Whether a cut model is what its class needs, with layers as they are in the reference.

    Args:
        reference: What it is cut from.
        kept: Which of the reference's layers.
        config: Of the cut model.
        tensors: Of the cut model; each has a name, a dtype and a shape.
        prefix: What stands before the number of a layer in their names; None: what stands there
            in the reference.

    Returns:
        See `model_class.compare_cut`.

    Raises:
        SourceError: The class refuses it, or would fill weights at random.
        UnsupportedModelError: A layer would not be what it is in the reference.
    """
    answer: dict[str, Any] = ask(
        "compare_cut",
        target=config,
        tensors={t.name: [t.dtype, t.shape] for t in tensors},
        prefix=prefix or reference.container.prefix,
        reference=reference.config,
        kept=list(kept),
    )
    return answer


def check_whole(model: ModelDirectory) -> str:
    """Whether a model directory holds every weight that its class needs.

    Returns:
        ``"complete: LlamaForCausalLM"``, or ``"not checked: "`` and why: a class that transformers
        does not have, or whose other requirements are missing.

    Raises:
        SourceError: The class refuses config or weights, misses a weight, or leaves one unused
            that belongs to a numbered list outside the layers.
    """
    tensors: dict[str, Tensor] = model.tensors
    answer = ask(
        "compare_cut",
        target=model.config,
        tensors={t.name: [t.dtype, t.shape] for t in tensors.values()},
        prefix=model.container.prefix,
    )
    return str(answer["check"])


def ask(question: str, **values: Any) -> Any:
    """Ask the child process.

    Args:
        question: One that `answers` knows.
        values: JSON values.

    Raises:
        InherituneError: What the child found, as it found it.
        SourceError: The child died over it, or took more than a quarter of an hour.
    """
    line = json.dumps({"question": question} | values).encode() + b"\n"
    with _ASKING:
        reply = _child().exchange(line)
        if not reply:  # it may have gone to sleep just now, which is not about this question
            _forget()
            reply = _child().exchange(line)
        if not reply:
            code = _forget()
            raise SourceError(
                f"the check by the model's class ended without an answer (exit code {code}).",
                "The model may be too large for this machine's memory, or a file was changed.",
            )
    answer = json.loads(reply)
    if "error" in answer:
        kind = getattr(errors, answer["error"])
        raise kind(answer["message"], answer["hint"])
    if "bug" in answer:
        raise RuntimeError(answer["bug"])
    return answer["answer"]


class _Child:
    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *_COMMAND],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            # A config may name repositories that transformers would look up.
            env=os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"},
        )

    def exchange(self, line: bytes) -> bytes:
        """The answer to a question; empty if the process is gone."""
        assert self.process.stdin is not None and self.process.stdout is not None
        timer = threading.Timer(_PATIENCE_S, self.process.kill)
        timer.daemon = True
        timer.start()
        try:
            self.process.stdin.write(line)
            self.process.stdin.flush()
            return self.process.stdout.readline()
        except (OSError, ValueError):  # it is gone, or it was ended from another thread
            return b""
        finally:
            timer.cancel()

    def end(self) -> int:
        assert self.process.stdin is not None and self.process.stdout is not None
        with suppress(OSError):
            self.process.stdin.close()
        try:
            code = self.process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        self.process.stdout.close()
        return code


@cache
def _child() -> _Child:
    atexit.register(_forget)
    return _Child()


def _forget() -> int:
    if not _child.cache_info().currsize:
        return 0
    child = _child()
    _child.cache_clear()
    return child.end()
