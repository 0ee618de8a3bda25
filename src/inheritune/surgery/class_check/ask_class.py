"""Ask a model's own class about the model, in a child process that imports torch and transformers.

The import takes seconds and hundreds of megabytes, which this process is spared. An answer takes
less than a second. The child waits a minute for the next question before it ends.
"""

import atexit
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from inheritune import errors
from inheritune.errors import SourceError, escape
from inheritune.model_files.config import cut_config
from inheritune.model_files.directory import ModelDirectory
from inheritune.model_files.layers import STRAY
from inheritune.model_files.refusals import rows_of_embedding
from inheritune.model_files.safetensors import Tensor
from inheritune.model_files.scan import Scan, not_finite, refuse_not_finite
from inheritune.model_files.write import TargetTensor
from inheritune.surgery.class_check.remembered import recall, remember

_LOCK = threading.RLock()  # one child, one question at a time
_COMMAND = ["-m", "inheritune.surgery.class_check.class_process"]
# Questions about configs, names and shapes, which are among the values.
_BY_VALUES = {
    *("compare_cut", "language_problem", "text_model", "counted_by_number", "explicit_lists"),
}
_TIMEOUT_S = 900.0  # for one answer; loading and running a large model takes minutes


@dataclass(frozen=True)
class ClassCheck:
    """The result of a class check that did not refuse the model."""

    # ``"complete: LlamaForCausalLM"`` and what was compared, or ``"not checked: "`` and the reason:
    # transformers has no such class, or the class needs a package.
    summary: str
    tied: bool | None  # whether the class ties head and embedding; None if not checked
    unused: list[str]  # names of tensors that the class does not use, such as buffers in old files

    @property
    def skipped(self) -> bool:
        """Whether the class was not asked, or could not answer."""
        return self.summary.startswith("not checked")

    def unused_of(self, names: Iterable[str]) -> set[str]:
        """Select the tensors that the class does not use; unchecked, by names of old files."""
        if self.skipped:
            return {name for name in names if name.endswith(STRAY)}
        # Files of GPT-2 on the Hub leave the first part of a name out.
        unused = {*self.unused, *(name.partition(".")[2] for name in self.unused)}
        return unused.intersection(names)


def check_cut(
    reference: ModelDirectory,
    layer_map: Sequence[int],
    config: Mapping[str, Any],
    tensors: Iterable[Tensor | TargetTensor],
    prefix: str | None = None,
) -> ClassCheck:
    """Check that a cut model has every weight, and its layers as they are in the reference.

    Args:
        layer_map: The reference's layer that each layer of the cut model is.
        prefix: Text before the layer number in tensor names; None: the reference's.

    Raises:
        SourceError: See `check_complete`.
        UnsupportedModelError: A layer would not be what it is in the reference.
    """
    prefix = prefix or reference.container.prefix
    # Some classes refuse a list that is longer than the depth; the cut one is right already.
    whole, _ = cut_config(reference.config, reference.layers)
    return check_complete(config, tensors, prefix, whole, list(layer_map))


def check_complete(
    config: Mapping[str, Any],
    tensors: Iterable[Tensor | TargetTensor],
    prefix: str,
    reference: Mapping[str, Any] | None = None,
    layer_map: Sequence[int] | None = None,
) -> ClassCheck:
    """Check that a model has every weight that its class needs; for a cut one, see `check_cut`.

    Raises:
        SourceError: The class refuses config or weights, or misses a weight. Those that it does
            not use are listed.
    """
    described = {t.name: [t.dtype, t.shape] for t in tensors}
    compared = {"reference": reference, "layer_map": layer_map}
    answer = ask_class("compare_cut", target=config, tensors=described, prefix=prefix, **compared)
    return ClassCheck(**answer)


def check_whole(model: ModelDirectory) -> ClassCheck:
    """Check that a model directory is complete, see `check_complete`."""
    return check_complete(model.config, model.tensors.values(), model.container.prefix)


def language_problem(model: ModelDirectory) -> str:
    """Say why a model is not trained or measured here, in sentences; empty for a language model.

    The class is asked only where names and shapes leave a doubt: it takes seconds.
    """
    if is_plainly_causal(model):
        return ""
    tensors = {tensor.name: [tensor.dtype, tensor.shape] for tensor in model.tensors.values()}
    found = ask_class("language_problem", config=model.config, tensors=tensors)
    return f"{escape(model.name)} {found['problem']} {found['hint']}" if found else ""


def refuse_broken_values(model: ModelDirectory, scans: Mapping[str, Scan]) -> list[str]:
    """Refuse weights that hold NaN or infinity; return the tensors that may, being unused.

    Args:
        scans: Of the model's tensors. The class is asked only where one is not finite.
    """
    broken = not_finite(scans)
    if broken:
        refuse_not_finite(scans, model.path, check_whole(model).unused_of(scans))
    return broken


def text_only(model: ModelDirectory) -> ModelDirectory:
    """Return the language model inside a model that also reads images, as a model of its own.

    Its tensors are ranges of the same files, under the names of its own class. What prepares images
    does not belong to it.

    Raises:
        UnsupportedModelError: transformers has no class for the text alone, or it is all there is.
        SourceError: The class refuses the text, or misses a weight of it.
    """
    if model.text_only:
        return model
    tensors = {tensor.name: [tensor.dtype, tensor.shape] for tensor in model.tensors.values()}
    prefix = model.container.prefix
    found = ask_class("text_model", config=model.config, tensors=tensors, prefix=prefix)
    return replace(
        model,
        config=found["config"],
        tensors={n: replace(model.tensors[old], name=n) for n, old in found["names"].items()},
        side_files=[p for p in model.side_files if not p.name.endswith("processor_config.json")],
        text_only=True,
    )


def is_plainly_causal(model: ModelDirectory) -> bool:
    """Tell by config and headers that a model is a language model with a head; in doubt, False."""
    config, names = model.config, model.config.get("architectures")
    name = str(names[0]) if isinstance(names, list) and names else ""
    has_head = any(key.endswith(("lm_head.weight", "embed_out.weight")) for key in model.tensors)
    return (
        name.endswith(("ForCausalLM", "LMHeadModel"))
        and not config.get("auto_map")
        and (has_head or config.get("tie_word_embeddings") is True)
        and rows_of_embedding(model.tensors.values()) == config.get("vocab_size")
    )


def ask_class(question: str, about: Any = None, **values: Any) -> Any:
    """Call a function in the child process, with JSON values, see `class_process.find_answer`.

    What was asked before is not asked again, see `remembered`.

    Args:
        about: What the answer depends on, as JSON values. None: for questions about configs, names
            and shapes, the values; an answer to any other question is not remembered.

    Raises:
        InherituneError: The error that was raised in the child.
        SourceError: The child died, or took more than a quarter of an hour.
    """
    # Questions of higher rooms are about a config, too.
    if about is None and (question in _BY_VALUES or ":" in question):
        about = values
    if about is not None and (known := recall(question, about)):
        return known["answer"]
    answer = _answer_of_child(json.dumps({"question": question} | values).encode() + b"\n")
    if about is not None:
        remember(question, about, answer)
    return answer


def _answer_of_child(line: bytes) -> Any:
    with _LOCK:
        reply = _child().exchange(line)
        if not reply:  # it may have ended by itself just now, after its idle minute
            _end_child()
            reply = _child().exchange(line)
        if not reply:
            code = _end_child()
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
        """Send a question and return the answer; empty if the process has ended."""
        assert self.process.stdin is not None and self.process.stdout is not None
        timer = threading.Timer(_TIMEOUT_S, self.process.kill)
        timer.daemon = True
        timer.start()
        try:
            self.process.stdin.write(line)
            self.process.stdin.flush()
            return self.process.stdout.readline()
        except (OSError, ValueError):  # it is gone, or another thread ended it
            return b""
        finally:
            timer.cancel()

    def end(self) -> int:
        """Kill the process, unless it has ended by itself, and return its exit code."""
        self.process.kill()
        with suppress(OSError), self.process:  # closes the pipes, one perhaps with unsent bytes
            pass
        return self.process.wait()


@cache
def _child() -> _Child:
    atexit.register(_end_child)
    return _Child()


def _end_child() -> int:
    if not _child.cache_info().currsize:
        return 0
    child = _child()
    _child.cache_clear()
    return child.end()
