"""Plan a cut: the config of the target, and where each of its tensors lies in the reference."""

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from inheritune.errors import SourceError, UnsupportedModelError
from inheritune.model_files.cast import FLOATING
from inheritune.model_files.config import Edit, cut_config, text_config
from inheritune.model_files.directory import ModelDirectory
from inheritune.model_files.layers import Container, adapts_cut_layer, numbered
from inheritune.model_files.safetensors import Tensor, item_bits, torch_name
from inheritune.model_files.write import TargetTensor
from inheritune.surgery.class_check.ask_class import ask_class
from inheritune.surgery.selection import choose_layers
from inheritune.surgery.ways import LayerFacts

# Kept in fp32 by the classes that have them: rotary tables, expert biases, state space decays.
NEVER_NARROWED = ("inv_freq", "e_score_correction_bias", "A_log")

# The two known tensors outside the layers that have a part for each of them (gemma3n, gemma4):
# (V, N·d) cut by columns, (N·d, h) by rows.
_SPLIT_BY_COLUMNS = "embed_tokens_per_layer.weight"
_SPLIT_BY_ROWS = "per_layer_model_projection.weight"


@dataclass(frozen=True)
class InheritPlan:
    """The plan of a cut."""

    layer_map: tuple[int, ...]  # indices of the layers to keep, ascending
    config: dict[str, Any]
    edits: list[Edit]  # its changes against the reference's, each with its reason
    tensors: list[TargetTensor]  # the target's tensors, in the order of the reference's files
    dropped_prediction: list[str]  # names of the multi-token-prediction tensors that are left out
    # Fields of the config with a value for each layer, other than the class derives from numbers
    # of layers; known where ``by_class`` was asked for.
    by_number: tuple[str, ...] = ()

    @property
    def is_prefix(self) -> bool:
        """Whether the first layers are kept, so that every layer keeps its index."""
        return self.layer_map == tuple(range(len(self.layer_map)))


def plan_inherit(
    reference: ModelDirectory,
    layers: int | Sequence[int],
    *,
    dtype: str | None = None,
    by_class: bool = False,
) -> InheritPlan:
    """Plan a cut from config and headers alone; no weight is read.

    Args:
        layers: A number of first layers, or layer indices in ascending order.
        dtype: Safetensors name of a floating dtype to cast the weights to; None: as they are.
        by_class: Where layers move, ask the model's class which fields of the config it derives
            from layer indices, and write them out. Needed for a plan that is carried out.

    Raises:
        RecipeError: The reference has no such layers.
        UnsupportedModelError: The config cannot be cut to these layers.
        SourceError: The class refuses the config.
    """
    # --- the config: derived lists are written out first, so that the cut can edit them ---
    layer_map = choose_layers(layers, LayerFacts(reference.layers))
    explicit, by_number = {}, []
    moves = by_class and layer_map != tuple(range(len(layer_map)))
    if moves:
        section = dict(text_config(cut_config(reference.config, reference.layers)[0]))
        explicit = ask_class("explicit_lists", config=section, layers=reference.layers)
    config, added = _with_explicit(reference.config, explicit)
    config, edits = cut_config(config, layer_map)
    if moves:
        section = dict(text_config(config))
        by_number = ask_class("counted_by_number", config=section, layers=len(layer_map))
    if dtype is not None:
        edits = [*edits, *_cast_config(config, dtype)]
    # --- the tensors: ranges of the reference's files, under the names of their new layers ---
    names = {layer: place for place, layer in enumerate(layer_map)}
    sources = kept_tensors(reference, layer_map)
    main = stored_dtype(sources)
    tensors = [
        TargetTensor(
            renamed(source.name, reference.container, names),
            source,
            _target_dtype(source, main, dtype),
        )
        for source in sources
    ]
    in_all = {t.name for t in kept_tensors(reference, range(reference.layers))}
    dropped = sorted(name for name in reference.tensors if name not in in_all)
    return InheritPlan(layer_map, config, [*added, *edits], tensors, dropped, tuple(by_number))


def kept_tensors(reference: ModelDirectory, layers: int | Sequence[int]) -> list[Tensor]:
    """List the tensors of the target as ranges of the reference's files, in the order on disk.

    Everything outside the layers is kept (embeddings, positions, norms, heads), except
    multi-token-prediction layers, which read the hidden state after all layers.
    """
    container, section = reference.container, text_config(reference.config)
    indices = set(choose_layers(layers, LayerFacts(reference.layers)))
    tensors = [
        tensor
        for name, tensor in reference.tensors.items()
        if container.keeps(name, indices)
        and not adapts_cut_layer(name, section, reference.layers, indices)
    ]
    if "hidden_size_per_layer_input" not in section:
        return tensors
    if max(indices) >= len(indices) and any(_is_split(tensor) for tensor in tensors):
        raise UnsupportedModelError(
            f"{reference.name} has weights outside its layers with a part for each of them, in the "
            "order of the layers.",
            "Keep first layers only.",
        )
    return [_cut_split_tensor(tensor, len(indices), reference.layers) for tensor in tensors]


def _is_split(tensor: Tensor) -> bool:
    return tensor.name.endswith((_SPLIT_BY_COLUMNS, _SPLIT_BY_ROWS))


def _cut_split_tensor(tensor: Tensor, layers: int, total: int) -> Tensor:
    by_columns = tensor.name.endswith(_SPLIT_BY_COLUMNS)
    if not _is_split(tensor):
        return tensor
    if len(tensor.shape) != 2 or tensor.shape[int(by_columns)] % total:
        raise SourceError(
            f"{tensor.name} of shape {tensor.shape} has no part for each of {total} layers."
        )
    size = tensor.size // total * layers
    rows, columns = tensor.shape
    if not by_columns:
        return replace(tensor, shape=(rows // total * layers, columns), size=size)
    pitch = columns * item_bits(tensor.dtype) // 8 if layers < total else 0
    return replace(tensor, shape=(rows, columns // total * layers), size=size, pitch=pitch)


def _with_explicit(
    config: Mapping[str, Any], explicit: Mapping[str, Sequence[Any]]
) -> tuple[dict[str, Any], list[Edit]]:
    reason = "written out, since the class derives it from the number of a layer"
    edits = [Edit(key, None, list(value), reason) for key, value in explicit.items()]
    copied = copy.deepcopy(dict(config))
    section: Any = text_config(copied)
    section.update({edit.key: edit.after for edit in edits})
    return copied, edits


def _cast_config(section: dict[str, Any], dtype: str, path: str = "") -> list[Edit]:
    edits = []
    for key, value in section.items():
        if isinstance(value, dict):
            edits += _cast_config(value, dtype, f"{path}{key}.")
        elif key in ("dtype", "torch_dtype") and isinstance(value, str):
            section[key] = torch_name(dtype)
            edits.append(Edit(path + key, value, section[key], "the dtype asked for"))
    return [edit for edit in edits if edit.before != edit.after]


def stored_dtype(tensors: Sequence[Tensor]) -> str | None:
    """Return the floating dtype that most bytes are stored in; None without floating tensors."""
    sizes: Counter[str] = Counter()
    for tensor in tensors:
        if tensor.dtype in FLOATING:
            sizes[tensor.dtype] += tensor.size
    return sizes.most_common(1)[0][0] if sizes else None


def _target_dtype(source: Tensor, main: str | None, dtype: str | None) -> str:
    # A tensor that the reference stores in another dtype than the rest has it on purpose.
    if dtype is None or source.dtype != main:
        return source.dtype
    narrower = item_bits(dtype) < item_bits(source.dtype)
    return source.dtype if narrower and source.name.endswith(NEVER_NARROWED) else dtype


def renamed(name: str, container: Container, places: Mapping[int, int]) -> str:
    """Rename a tensor of a layer that moves to ``places[layer]``; keep any other name."""
    split, layer = numbered(name), container.layer_of(name)
    if split is None or layer is None:
        return name
    prefix, number = split
    rest = name[len(prefix) :].partition(".")[2]
    return f"{prefix}{number + places[layer] - layer}" + (f".{rest}" if rest else "")
