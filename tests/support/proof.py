"""The proof that a target computes what its reference does, layer by layer."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from support.shrink import FIRST_SPECIAL

from inheritune.model_files.config_fields import COUNTS
from inheritune.surgery.class_check.weights_check import align_weights

__all__ = [
    *("Generation", "Seen", "WrongError", "layer_list", "load", "named", "observe", "prove"),
    *("prove_alone", "prove_generation", "save_tiny", "token_ids", "what_it_generates"),
]

_TOKENS = 12  # more than the shrunk windows and chunks
_NEW_TOKENS = 3


class WrongError(Exception):
    """A target that is not what its reference says."""


@dataclass
class Seen:
    """Outputs of the layers, and the logits; what the layers were given; shapes outside them."""

    layers: list[Any]
    logits: torch.Tensor
    given: list[Any]
    outer: dict[str, torch.Size]


@dataclass
class Generation:
    """What generation the reference itself is able to."""

    cached: bool
    same: bool
    notes: list[str]


def save_tiny(found: Any, config: Any, directory: Path) -> None:
    """Write a model with seeded weights, none of them at its initial value."""
    torch.manual_seed(0)
    model = found(config).eval()
    # A tensor left at zero or one hides a lost one, or one from another layer.
    done: set[int] = set()
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point() and tensor.data_ptr() not in done:
                done.add(tensor.data_ptr())
                tensor.add_(torch.randn_like(tensor) * 0.05)
            elif tensor.ndim == 2 and not tensor.any():
                tensor.random_(0, 2)  # a table of experts
    model.save_pretrained(directory)


def load(found: Any, directory: Path) -> Any:
    """Load a model directory as a user would.

    Raises:
        WrongError: A weight is missing, of another shape, or left over.
    """
    model, info = found.from_pretrained(
        directory, local_files_only=True, use_safetensors=True, output_loading_info=True
    )
    for kind in ("missing_keys", "mismatched_keys", "unexpected_keys"):
        if info[kind]:
            raise WrongError(f"{kind} at reload: {sorted(map(str, info[kind]))[0]}")
    align_weights(model)
    return model.eval()


def layer_list(model: Any, config: Any) -> tuple[str, int]:
    """Path of the list of decoder layers in the model, and its length."""
    text = config.get_text_config(decoder=True)
    counts = {getattr(text, name, None) for name in COUNTS}
    lists = [
        (name.count("."), name, len(module))
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList)
        and len(module) in counts
        and not any(part in name for part in ("vision", "visual", "audio", "depth_decoder"))
    ]
    if not lists:
        raise ValueError(f"{type(model).__name__} has no list of layers")
    _, path, total = min(lists)
    return path, total


def token_ids() -> torch.Tensor:
    """The input of every comparison, (1, T)."""
    draw = torch.Generator().manual_seed(1)
    return torch.randint(3, FIRST_SPECIAL, (1, _TOKENS), generator=draw)  # (B, T)


def observe(model: Any, path: str) -> Seen:
    """What the layers under a path of modules give, and the model, for `token_ids`.

    Raises:
        ValueError: A layer is not called, or changes nothing: a proof by it would be empty.
    """
    layers = model.get_submodule(path)
    seen: list[Any] = [None] * len(layers)
    given: list[Any] = [None] * len(layers)

    def hook(index: int) -> Any:
        def keep(_module: Any, inputs: Any, options: Any, output: Any) -> None:
            seen[index], given[index] = _copied(output), (inputs, options)

        return keep

    handles = [
        layer.register_forward_hook(hook(i), with_kwargs=True) for i, layer in enumerate(layers)
    ]
    try:
        with torch.no_grad():
            logits = model(input_ids=token_ids(), use_cache=False, **_image(model)).logits
    finally:
        for handle in handles:
            handle.remove()
    for i, output in enumerate(seen):
        if not _tensors(output) or (i and _equal(output, seen[i - 1])):
            raise ValueError(f"layer {i} of {type(model).__name__} gives nothing of its own")
    outer = {n: w.shape for n, w in model.named_parameters() if not n.startswith(path + ".")}
    return Seen(seen, logits, given, outer)


def _image(model: Any) -> dict[str, torch.Tensor]:
    """What an image would give the layers that look at nothing else (mllama)."""
    if "cross_attention_states" not in inspect.signature(model.forward).parameters:
        return {}
    width = model.config.get_text_config(decoder=True).hidden_size
    draw = torch.Generator().manual_seed(2)
    return {"cross_attention_states": torch.randn(1, 5, width, generator=draw)}


def _tensors(output: Any) -> list[torch.Tensor]:
    if isinstance(output, torch.Tensor):
        return [output]
    values = output.values() if isinstance(output, dict) else output or []
    return [tensor for value in values for tensor in _tensors(value)]


def _copied(output: Any) -> Any:
    if isinstance(output, torch.Tensor):
        return output.detach().clone()
    if isinstance(output, Mapping):
        return {key: _copied(value) for key, value in output.items()}
    if isinstance(output, tuple | list):
        return [_copied(value) for value in output]
    return None


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_equal, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_equal(one[k], other[k]) for k in one)
    return one is None and other is None


def what_it_generates(model: Any) -> Generation:
    """What generation a reference is able to: not all classes can do without or with a cache."""
    try:
        plain = _generated(model, use_cache=False)
    except Exception as error:
        return Generation(False, False, [f"generation fails in the class: {type(error).__name__}"])
    try:
        cached = _generated(model, use_cache=True)
    except Exception as error:
        return Generation(False, False, [f"the cache fails in the class: {type(error).__name__}"])
    same = torch.equal(plain, cached)
    notes = [] if same else ["the class's own cache changes what is generated"]
    return Generation(True, same, notes)


def _generated(model: Any, use_cache: bool) -> torch.Tensor:
    ids = token_ids()
    with torch.no_grad():
        return model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=_NEW_TOKENS,
            min_new_tokens=_NEW_TOKENS,
            do_sample=False,
            use_cache=use_cache,
        )


def prove_alone(target: Any, path: str, expected: Seen, layers: int) -> None:
    """Compare what each layer of a target gives for what its reference's layer was given.

    For models with a part for each layer outside them: a product with fewer columns may be rounded
    in another order, before the first layer.

    Raises:
        WrongError: They differ.
    """
    if len(target.get_submodule(path)) != layers:
        raise WrongError(f"the target has {len(target.get_submodule(path))} layers")
    for i, layer in enumerate(target.get_submodule(path)):
        inputs, options = expected.given[i]
        with torch.no_grad():
            if not _equal(_copied(layer(*inputs, **options)), expected.layers[i]):
                raise WrongError(f"layer {i} computes something else")


def prove(observed: Seen, expected: Seen, layers: int) -> None:
    """Compare each layer of a target with its reference's, and all of it where all are kept.

    Raises:
        WrongError: They differ.
    """
    if len(observed.layers) != layers:
        raise WrongError(f"the target has {len(observed.layers)} layers")
    for i in range(layers):
        if not _equal(observed.layers[i], expected.layers[i]):
            raise WrongError(f"layer {i} computes something else")
    if layers == len(expected.layers) and not torch.equal(observed.logits, expected.logits):
        raise WrongError("all layers, but other logits")


def prove_generation(target: Any, able: Generation) -> None:
    """Refuse a target that does not generate as its reference is able to.

    Raises:
        WrongError: It breaks, or its cache changes the tokens.
    """
    if not able.cached:
        return
    try:
        cached = _generated(target, use_cache=True)
        plain = _generated(target, use_cache=False)
    except Exception as error:
        raise WrongError(f"the target does not generate: {named(error)}") from error
    if able.same and not torch.equal(cached, plain):
        raise WrongError("the cache changes what is generated")


def named(error: Exception) -> str:
    """An error with its type."""
    return f"{type(error).__name__}: {error}"
