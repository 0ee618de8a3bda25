"""Load a model's class without any weight, to see which tensors it needs and which it uses."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from inheritune.errors import SourceError, escape, first_line, sentence
from inheritune.model_files.safetensors import torch_name
from inheritune.surgery.class_check.layer_check import model_config


@dataclass(frozen=True)
class MetaLoad:
    """What a class does with a set of tensors; all names sorted."""

    missing: list[str]  # weights that it would draw at random
    unexpected: list[str]  # tensors that it does not use, but for those that it knows of
    unused: list[str]  # all that it does not use
    tied: bool  # whether head and embedding are one


def load_on_meta(
    model_class: Any, config: Mapping[str, Any], tensors: Mapping[str, Sequence[Any]]
) -> MetaLoad:
    """Load a class with tensors that have a dtype and a shape, but no values.

    Args:
        tensors: Safetensors dtype and shape by name.

    Raises:
        SourceError: The class refuses config or tensors, or wants one of another shape.
        ImportError: The class needs a package.
    """
    import torch

    class Meta(torch.Tensor):
        """Stay on the meta device: one conversion would take 95 GB on a CPU (qwen4_exp)."""

        def to(self, *_: Any, dtype: Any = None, **__: Any) -> torch.Tensor:
            plain = self.as_subclass(torch.Tensor)
            return plain if dtype is None else plain.to(dtype)

    name = model_class.__name__
    state = {}
    for key, (dtype, shape) in tensors.items():
        empty = torch.empty(shape, dtype=getattr(torch, torch_name(dtype)), device="meta")
        state[key] = empty.as_subclass(Meta)
    try:
        class_config = model_config(model_class, config)
        with _all_unused() as unused:
            _, info = model_class.from_pretrained(
                None,
                config=class_config,
                state_dict=state,
                device_map="meta",
                attn_implementation="eager",
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are refused below, by name
            )
    except ImportError:
        raise
    except Exception as error:  # classes raise any type; here it is about this model
        raise SourceError(
            f"{name} refuses this config with these weights: {sentence(first_line(error))}",
            "Check that the two belong together, or report it with the model's name.",
        ) from error
    text = class_config.get_text_config(decoder=True)
    refuse_other_shapes(name, info["mismatched_keys"], getattr(text, "vocab_size", None))
    return MetaLoad(
        missing=sorted(map(str, info["missing_keys"])),
        unexpected=sorted(map(str, info["unexpected_keys"])),
        unused=sorted(unused),
        tied=bool(getattr(text, "tie_word_embeddings", False)),
    )


def refuse_other_shapes(name: str, mismatched: Any, vocab_size: Any) -> None:
    """Refuse tensors of another shape than the class makes them of the config.

    Args:
        name: Name of the class.
        mismatched: Name, stored shape and expected shape of each, as transformers lists them.
        vocab_size: As the config says.
    """
    if not mismatched:
        return
    tensor, stored, expected = min((str(t), tuple(s), tuple(e)) for t, s, e in mismatched)
    hint = "Config and weights are of different models: correct config.json, or download again."
    if expected[:1] == (vocab_size,) and stored[1:] == expected[1:]:
        hint = f"Set vocab_size to {stored[0]} in config.json, of a Hub model in a copy."
    raise SourceError(
        f"{escape(tensor)} is {_shape(stored)} in the files; by its config.json, {name} makes it "
        f"{_shape(expected)}.",
        hint,
    )


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape)) or "a single number"


@contextmanager
def _all_unused() -> Iterator[set[str]]:
    """Collect the tensors that a class does not use, also those that it would not name.

    GPT-NeoX leaves the causal masks of its old files out of what it reports.
    """
    from transformers import PreTrainedModel

    every_class: Any = PreTrainedModel
    unused: set[str] = set()
    leave_out = every_class._adjust_missing_and_unexpected_keys

    def collect(model: Any, loading: Any) -> None:
        unused.update(map(str, loading.unexpected_keys))
        leave_out(model, loading)

    every_class._adjust_missing_and_unexpected_keys = collect
    try:
        yield unused
    finally:
        every_class._adjust_missing_and_unexpected_keys = leave_out
