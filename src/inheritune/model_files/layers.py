"""Find the layers of a model by its tensor names, and their kinds by its config."""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from inheritune.errors import SourceError, UnsupportedModelError, escape

# Parts of names that belong to the other modalities of a multimodal model.
_TOWERS = ("vision", "visual", "audio", "image", "speech", "sam_", "talker", "token2wav")
# Ends of the names of buffers in old files, which the class computes and does not write.
STRAY = (".attn.bias", ".attn.masked_bias", ".attention.bias", ".masked_bias", "inv_freq")
# Beginnings of names of small models and heads that guess tokens ahead.
_DRAFTS = ("draft", "medusa", "eagle", "speculator")
# Lists beside the layers with one tensor for each, and the layer that their number 0 belongs to:
# inkling2's queries over the residual stream, of which the attention of layer 0 needs none.
_COMPANIONS = {"attn_res.mlp_queries.": 0, "attn_res.attn_queries.": 1}


@dataclass(frozen=True)
class Container:
    """The numbered list of tensors that are the layers."""

    prefix: str  # the part of their names before the number, such as ``"model.layers."``
    layers: int
    # Numbers from ``layers`` on: multi-token-prediction layers, which read the hidden state after
    # all layers and are useless on top of fewer.
    extra: tuple[int, ...] = ()
    outside: frozenset[str] = frozenset()  # prediction tensors outside the list
    # Prefixes of other numbered lists of about the same length, which may hold weights of the
    # layers; only the model's class knows.
    parallel: tuple[str, ...] = ()

    def keeps(self, name: str, kept: Collection[int]) -> bool:
        """Tell whether a tensor belongs to the model cut to the layers with these indices."""
        layer = self.layer_of(name)
        return name not in self.outside if layer is None else layer in kept

    def layer_of(self, name: str) -> int | None:
        """Return the index of the layer that a tensor belongs to; None: outside the layers."""
        if (parts := numbered(name)) is None:
            return None
        prefix, number = parts
        if prefix == self.prefix:
            return number
        shift = _companion(prefix)
        return None if shift is None else number + shift


def _companion(prefix: str) -> int | None:
    return next((n for ending, n in _COMPANIONS.items() if prefix.endswith(ending)), None)


def numbered(name: str) -> tuple[str, int] | None:
    """Split a tensor name at its first number: ``"h.3.attn.w"`` gives ``("h.", 3)``."""
    parts = name.split(".")
    for place, part in enumerate(parts):
        if part.isascii() and part.isdecimal() and len(part) < 7:
            return "".join(f"{p}." for p in parts[:place]), int(part)
    return None


def find_container(
    names: Iterable[str], layers: int, announced: int = 0, recorded_prefix: str | None = None
) -> Container:
    """Find the list of layers among the names of a model's tensors.

    Args:
        announced: Number of multi-token-prediction layers in the config.
        recorded_prefix: Prefix of the layers, if a record names it. It decides between lists of the
            same length, which are common where a target has few layers.

    Raises:
        SourceError: No list has the numbers 0 to ``layers`` - 1, or the list has unknown others.
        UnsupportedModelError: Several lists have these numbers.
    """
    # --- all numbered lists of the text model ---
    lists: dict[str, set[int]] = defaultdict(set)
    prediction: set[str] = set()
    for name in names:
        if any(part == "mtp" or part.startswith("mtp_") for part in name.split(".")):
            prediction.add(name)
        elif (parts := numbered(name)) is None or _companion(parts[0]) is not None:
            continue
        elif not is_tower(parts[0]) and not parts[0].startswith(_DRAFTS):
            lists[parts[0]].add(parts[1])
    # --- the one with a number for each layer ---
    # The length first: a config that claims 10^12 layers must not cost 10^12 steps.
    complete = [p for p, n in lists.items() if len(n) >= layers and n.issuperset(range(layers))]
    if not complete:
        raise _no_container(lists, layers)
    if recorded_prefix in complete:
        complete = [str(recorded_prefix)]
    if len(complete) > 1:
        raise UnsupportedModelError(
            f"several lists of tensors could be the {layers} layers: "
            f"{', '.join(sorted(complete))}.",
            "Models with several stacks of the same length are not supported yet.",
        )
    # --- what the list holds besides, and the lists that resemble it ---
    prefix = complete[0]
    extra = tuple(sorted(lists[prefix] - set(range(layers))))
    if any(number >= layers + announced for number in extra):
        raise SourceError(
            f"config.json says {layers} layers, but the weights also hold {_ranges(extra)} under "
            f"{prefix}",
            "The config belongs to another model, or the model has parts that are not known here.",
        )
    # A list of one or two is too common to mean anything.
    parallel = [
        p for p, n in lists.items() if p != prefix and abs(len(n) - layers) <= 1 and len(n) > 1
    ]
    return Container(prefix, layers, extra, frozenset(prediction), tuple(sorted(parallel)))


def is_tower(prefix: str) -> bool:
    """Tell whether a path of modules leads into another modality than text."""
    return any(word in prefix.lower() for word in _TOWERS)


def _no_container(lists: dict[str, set[int]], layers: int) -> SourceError:
    if not lists:
        return SourceError(
            f"config.json says {layers} layers, but no tensor name holds a layer number."
        )
    # The longest list is probably the one meant.
    prefix = max(lists, key=lambda p: (len(lists[p]), p))
    numbers = lists[prefix]
    missing = [i for i in range(min(layers, max(numbers) + 1000)) if i not in numbers]
    extra = [i for i in numbers if i >= layers]
    also = f", extra: {_ranges(extra)}" if extra else ""
    return SourceError(
        f"config.json says {layers} layers, but the weights hold {_ranges(numbers)} under "
        f"{escape(prefix)} (missing: {_ranges(missing)}{also}).",
        "Download the model again, or correct its config.",
    )


def _ranges(numbers: Collection[int]) -> str:
    texts = ranges(sorted(numbers))
    return ", ".join(texts[:5] + ["…"] * (len(texts) > 5))


def ranges(numbers: Iterable[int]) -> list[str]:
    """Write ascending numbers as ranges: 0, 1, 2, 3, 6 as ``["0-3", "6"]``."""
    pieces: list[list[int]] = []
    for number in numbers:
        if pieces and pieces[-1][1] == number - 1:
            pieces[-1][1] = number
        else:
            pieces.append([number, number])
    return [f"{first}-{last}" if last > first else str(first) for first, last in pieces]


# --- the kinds of layers of a hybrid model: attention, recurrent, MLP ---

# Kinds without a state, and kinds with a state of fixed size; all others keep keys and values.
_STATELESS = {"mlp", "moe", "-", "E"}
_RECURRENT = {"linear_attention", "linear", "mamba", "mamba2", "recurrent", "conv", "kda", "M"}


def attends(kind: str) -> bool:
    """Tell whether a kind of layer keeps keys and values, of all tokens or of a window of them."""
    return kind not in _STATELESS and kind not in _RECURRENT


def layer_kinds(section: Mapping[str, Any], total: int) -> list[str] | None:
    """Return the kind of each layer as the config names it; None if it states no kinds."""
    for name in ("layer_types", "layers_block_type", "hybrid_override_pattern"):
        value = section.get(name)
        if isinstance(value, list | str) and len(value) >= total:
            return [str(kind) for kind in value[:total]]
    if isinstance(value := section.get("block_types"), list) and value:
        return [str(value[i % len(value)]) for i in range(total)]  # recurrent_gemma
    is_attention = _attention_by_number(section)
    if is_attention is None:
        return None
    return ["attention" if is_attention(i) else "recurrent" for i in range(total)]


def adapts_cut_layer(
    name: str, section: Mapping[str, Any], total: int, kept: Collection[int]
) -> bool:
    """Tell whether a tensor is a zamba2 adapter for an attention layer that is cut off.

    In zamba2, all attention layers share the weights of the first ones, which hold a list of
    adapters, one for each attention layer.
    """
    _, separator, rest = name.partition("_adapter_list.")
    number = rest.partition(".")[0]
    if not separator or section.get("model_type") != "zamba2" or not number.isdecimal():
        return False
    places = [i for i, kind in enumerate(layer_kinds(section, total) or []) if attends(kind)]
    return int(number) < len(places) and places[int(number)] not in kept


def _attention_by_number(section: Mapping[str, Any]) -> Callable[[int], bool] | None:
    """Return a function that tells whether a layer index has attention; None if unstated."""
    linear = section.get("linear_attn_config")
    from_one = linear.get("full_attn_layers") if isinstance(linear, Mapping) else None
    if isinstance(from_one, list):  # kimi_linear
        return lambda i: i + 1 in from_one
    for name in ("attn_layer_indices", "full_attn_idxs"):  # bamba, lfm2
        if isinstance(numbers := section.get(name), list):
            return lambda i: i in numbers
    period, offset = section.get("attn_layer_period"), section.get("attn_layer_offset")
    if section.get("model_type") == "zamba":  # counts its period from the fourth layer
        period = None
    if type(period) is int and type(offset) is int and period > 0:  # jamba
        return lambda i: i % period == offset
    for name in ("full_attention_interval", "layer_group_size"):  # qwen3_next, bailing_hybrid
        if type(every := section.get(name)) is int and every > 0:
            return lambda i: (i + 1) % every == 0
    return None
