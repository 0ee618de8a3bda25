"""Load, run, compare and initialise models with real weights. Runs in `class_process`."""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inheritune.errors import SourceError, escape, first_line, sentence
from inheritune.model_files.directory import open_model
from inheritune.model_files.model_class import find_class
from inheritune.model_files.refusals import refuse_attached_adapter
from inheritune.surgery.class_check.layer_check import layer_list, model_config

if TYPE_CHECKING:
    from torch import Tensor


_LENGTH = 16
_ALIGNMENT = 64  # bytes; a vector of AVX-512, and where torch puts what it makes itself
# Tolerance between two ways of computing the same logits, as a share of the largest.
_ROUNDING = {"torch.float32": 1e-4, "torch.float64": 1e-8}
_COARSE = 0.05  # bf16 and fp16: three significant digits, added up over layers


def initialise(config: dict[str, Any], seed: int, out: str, normal: Sequence[str] = ()) -> None:
    """Write a model with the fresh fp32 weights that its class gives it.

    Args:
        normal: Names, or ends of names, of weights to draw from N(0, 1) instead.
    """
    import torch

    model_class = find_class(config)
    if isinstance(model_class, str):
        raise SourceError(f"no layer can be initialised: {model_class}.")
    torch.manual_seed(seed)
    model = model_class._from_config(model_config(model_class, config), dtype=torch.float32)
    for name, weight in model.named_parameters():
        if any(f".{name}".endswith(f".{ending}") for ending in normal):
            with torch.no_grad():
                weight.normal_()
    model.save_pretrained(out)


def reload(directory: str) -> dict[str, Any]:
    """Load a model directory as a user would, and run it.

    Returns:
        ``class``: name of its class; ``loader``: what loads it. ``gives``: ``"logits"``, or
        ``"outputs"`` of another kind. ``unexpected``: tensors that the class does not use.
        ``tied``: whether head and embedding are one tensor. ``cache``: largest difference between
        logits with and without a cache, as a share of the largest logit; infinite if the class
        fails with its cache, None if it has none. ``cache_agrees``: whether that is rounding.

    Raises:
        SourceError: It does not load, misses a weight, or gives values that are not finite.
    """
    import torch

    model, info = _load(directory)
    name = type(model).__name__
    if missing := sorted(info["missing_keys"]):
        raise SourceError(f"{name} fills {len(missing)} weights at random: {escape(missing[0])}.")
    ids = _ids(model, _LENGTH)
    with torch.no_grad():
        output = _run(model, ids)
    # A bare decoder gives hidden states, a classifier logits of its classes.
    logits = getattr(output, "logits", None)
    logits = output[0] if logits is None else logits
    if not torch.isfinite(logits).all():
        raise SourceError(f"{name} gives outputs that are not finite.")
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    is_language_model = head is not None and logits.dim() == 3
    return {
        "class": name,
        "loader": _loader(type(model)),
        "gives": "logits" if is_language_model else "outputs",
        "unexpected": sorted(info["unexpected_keys"]),
        "tied": head is not None and head.weight is embedding.weight,
        "cache": (apart := _compare_cache(model, ids, logits) if is_language_model else None),
        "cache_agrees": apart is None or apart <= _ROUNDING.get(str(logits.dtype), _COARSE),
    }


def _loader(model_class: Any) -> str:
    """Return the class of transformers that a user loads such a model with."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    tables = {
        "AutoModelForCausalLM": MODEL_FOR_CAUSAL_LM_MAPPING,
        "AutoModelForImageTextToText": MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    }
    config_class = model_class.config_class
    found = [name for name, table in tables.items() if table.get(config_class, None) is model_class]
    return found[0] if found else f"transformers.{model_class.__name__}"


def compare_outputs(
    target: str,
    reference: str,
    layer_map: Sequence[int],
    places: Sequence[int] | None = None,
    text_only: bool = False,
) -> str | None:
    """Run the same input through both models and compare the outputs of the kept layers bitwise.

    Args:
        layer_map: Index in the reference of each layer of the target.
        places: Layers of the target to compare; None: all.
        text_only: The target is of the language model inside of the reference.

    Returns:
        The comparison in words; None if the class skips some of the layers for text input.

    Raises:
        SourceError: The outputs differ.
    """
    import torch

    whole, _ = _load(reference)
    cut, _ = _load(target)
    prefix = open_model(reference).container.prefix
    # Inside of both, the language models without their heads have the same modules.
    inner, own = (m.get_decoder() if text_only else m for m in (whole, cut))
    path = layer_list(inner, own, prefix, len(layer_map))
    before, after = inner.get_submodule(path), own.get_submodule(path)
    align_weights(cut)
    align_weights(whole, [layer for i, layer in enumerate(before) if i not in layer_map])
    ids = _ids(whole, _LENGTH)
    # PaliGemma counts positions from 1 unless it is told: the same, but for rounding.
    told = text_only and type(inner) is type(own)
    options = {"position_ids": torch.arange(ids.shape[1])[None]} if told else {}
    calls = _record_calls(whole, [before[i] for i in layer_map], ids, **options)
    if len(calls) < len(layer_map):
        return None

    # --- first layers: run from the embedding on, compare the last output (the hidden state) ---
    last = len(layer_map) - 1
    is_prefix = places is None and list(layer_map) == list(range(len(layer_map)))
    if is_prefix and _same_outside(inner, own, path):
        outputs = _record_calls(cut, [after[last]], ids, **options)[0][2]
        _refuse_unequal(calls[last][2], outputs, f"layer {last}")
        if len(after) == len(before):
            with torch.no_grad():
                logits, own_logits = (_run(m, ids, **options).logits for m in (whole, cut))
                _refuse_unequal([logits], [own_logits], "the head")
        return f"the output of layer {last} equals the reference's, bit for bit"

    # --- moved layers: run each on the input that it had in the reference ---
    # So are those of a model whose weights outside the layers were cut with them: a product with
    # fewer columns may be rounded in another order.
    compared = range(len(layer_map)) if places is None else places
    for place in compared:
        inputs, others, expected = calls[place]
        with torch.no_grad():
            outputs = _tensors(after[place](*inputs, **others))
        _refuse_unequal(expected, outputs, f"layer {layer_map[place]}")
    count = "a layer" if len(compared) == 1 else f"{len(compared)} layers"
    return f"the outputs of {count} equal the reference's for equal inputs, bit for bit"


def _same_outside(whole: Any, cut: Any, path: str) -> bool:
    """Tell whether the weights outside the layers have the same shapes in both models."""
    shapes = [
        {n: w.shape for n, w in model.named_parameters() if not n.startswith(path + ".")}
        for model in (whole, cut)
    ]
    return shapes[0] == shapes[1]


def align_weights(model: Any, leave: Sequence[Any] = ()) -> None:
    """Move weights to aligned addresses, except those of the modules in ``leave``.

    Loaded weights lie in memory as they do in their file. Products with unaligned ones are rounded
    in another order, which differs by up to 1e-6 on an AVX-512 processor (docs/log.md).
    """
    left = {id(weight) for module in leave for weight in module.parameters()}
    for weight in [*model.parameters(), *model.buffers()]:
        if weight.data_ptr() % _ALIGNMENT and id(weight) not in left:
            weight.data = weight.data.clone()


def _load(directory: str) -> tuple[Any, dict[str, Any]]:
    config = open_model(directory).config
    refuse_attached_adapter(Path(directory))
    if isinstance(model_class := find_class(config), str):
        raise SourceError(f"{directory} cannot be loaded: {model_class}.")
    try:
        model, info = model_class.from_pretrained(
            Path(directory),
            config=model_config(model_class, config),
            dtype="auto",
            attn_implementation="eager",
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except Exception as error:  # classes raise any type; here it is about these files
        raise SourceError(
            f"{model_class.__name__} does not load {directory}: {sentence(first_line(error))}"
        ) from error
    return model.eval(), info


def _ids(model: Any, length: int) -> "Tensor":
    import torch

    config = model.config.get_text_config(decoder=True)
    special = {v for v in model.config.to_dict().values() if type(v) is int}
    plain = [i for i in range(min(config.vocab_size, 4096)) if i not in special] or [0]
    # Spread over the vocabulary, none twice where there are enough.
    return torch.tensor([[plain[(7 + 31 * i) % len(plain)] for i in range(length)]])


def _run(model: Any, ids: "Tensor", **options: Any) -> Any:
    try:
        return model(input_ids=ids, **options)
    except Exception as error:  # any failure to run is a finding about the model
        raise SourceError(
            f"{type(model).__name__} does not run: {sentence(first_line(error))}"
        ) from error


def _compare_cache(model: Any, ids: "Tensor", logits: "Tensor") -> float | None:
    import torch

    with torch.no_grad():
        try:
            first = _run(model, ids[:, :-1], use_cache=True)
            if (cache := getattr(first, "past_key_values", None)) is None:
                return None
            last = _run(model, ids[:, -1:], past_key_values=cache, use_cache=True).logits[:, -1]
        except SourceError:
            return math.inf
    scale = float(logits[:, -1].abs().max())
    return float((last - logits[:, -1]).abs().max()) / max(scale, 1e-30)


def _record_calls(
    model: Any, layers: Sequence[Any], ids: "Tensor", **options: Any
) -> list[tuple[Any, Any, Any]]:
    """Record inputs, keyword arguments and outputs of the layers in one forward pass."""
    import torch

    calls: dict[int, tuple[Any, Any, Any]] = {}

    def keep(place: int, _: Any, inputs: Any, options: Any, output: Any) -> None:
        calls[place] = inputs, options, _tensors(output)

    handles = [
        layer.register_forward_hook(partial(keep, i), with_kwargs=True)
        for i, layer in enumerate(layers)
    ]
    try:
        with torch.no_grad():
            _run(model, ids, use_cache=False, **options)
    finally:
        for handle in handles:
            handle.remove()
    return [calls[i] for i in sorted(calls)]


def _tensors(value: Any) -> "list[Tensor]":
    import torch

    if isinstance(value, torch.Tensor):
        return [value.clone()]
    values = value if isinstance(value, list | tuple) else []
    return [tensor for item in values for tensor in _tensors(item)]


def _refuse_unequal(expected: "list[Tensor]", outputs: "list[Tensor]", where: str) -> None:
    import torch

    for one, other in zip(expected, outputs, strict=True):
        if not torch.equal(one.nan_to_num(), other.nan_to_num()):
            apart = float((one.float() - other.float()).abs().max())
            raise SourceError(f"{where} gives other values than in the reference, up to {apart:g}.")
