"""At which layers a reference can be cut, and at which it is better cut."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from inheritune.errors import RecipeError, UnsupportedModelError
from inheritune.model_files.config import cut_config, text_config
from inheritune.model_files.config_fields import PER_LAYER, expand_runs
from inheritune.model_files.directory import ModelDirectory
from inheritune.model_files.layer_kinds import layer_kinds
from inheritune.surgery.sizes import LayerCounts

__all__ = ["CutPoint", "Pattern", "cut_point", "find_pattern"]


@dataclass(frozen=True)
class Pattern:
    """How the kinds of layers repeat.

    Attributes:
        lead: Layers before the pattern begins, such as the dense ones before those with experts.
        period: Layers after which it repeats; 1: all are alike.
    """

    lead: int
    period: int

    def is_complete(self, layers: int) -> bool:
        """Whether the first layers end with a whole pattern."""
        return layers > self.lead and (layers - self.lead) % self.period == 0

    def __str__(self) -> str:
        repeat = "alike" if self.period == 1 else f"in a pattern of {self.period}"
        if not self.lead:
            return f"all layers are {repeat}" if self.period == 1 else f"layers come {repeat}"
        return f"{self.lead} layers of their own, the others {repeat}"


@dataclass(frozen=True)
class CutPoint:
    """The first layers of a reference as a target.

    Attributes:
        layers: How many.
        allowed: Whether the config can be cut there. The model's class has the last word: `inherit`
            asks it, which needs torch.
        complete: Whether a whole pattern of layers ends there; None: the layers have no pattern.
        reason: Why not, or what is complete.
    """

    layers: int
    allowed: bool
    complete: bool | None
    reason: str

    @property
    def is_safe(self) -> bool:
        """Allowed, and no pattern is broken off."""
        return self.allowed and self.complete is not False


def find_pattern(reference: ModelDirectory, layers: Sequence[LayerCounts]) -> Pattern | None:
    """The pattern in which kinds of layers follow one another.

    Kinds are told by names and shapes of the tensors and by what the config says of each layer.

    Args:
        reference: Its config is looked at.
        layers: Each of its layers.

    Returns:
        The one with the shortest lead and period that comes twice at least; None: there is none.
    """
    forms = _forms(reference, layers)
    total = len(forms)
    best: Pattern | None = None
    for period in range(1, total // 2 + 1):
        # From the end backwards: as far as each layer is as the one a period later.
        lead = total - period
        while lead and forms[lead - 1] == forms[lead - 1 + period]:
            lead -= 1
        found = Pattern(lead, period)
        if lead <= total - 2 * period and (best is None or lead + period < best.lead + best.period):
            best = found
    return best if best or total > 1 else Pattern(0, 1)


def _forms(reference: ModelDirectory, layers: Sequence[LayerCounts]) -> list[int]:
    section, total = text_config(reference.config), len(layers)
    said = [section[key] for key in PER_LAYER if _is_list(section.get(key), total)]
    if (kinds := layer_kinds(section, total)) is not None:
        said.append(kinds)
    kinds = expand_runs(section.get("attention_types"), total)
    if kinds is not None and len(kinds) >= total:
        said.append(kinds[:total])
    for key in ("sliding_window_pattern", "global_attn_every_n_layers", "no_rope_layer_interval"):
        if type(every := section.get(key)) is int and every > 0:
            said.append([(i + 1) % every == 0 for i in range(total)])
    if type(every := section.get("n_layers_per_attn_res_block")) is int and every > 0:
        said.append([i % every for i in range(total)])
    numbers: dict[Any, int] = {}
    marks = [(layer.form, *(str(v[i]) for v in said)) for i, layer in enumerate(layers)]
    return [numbers.setdefault(mark, len(numbers)) for mark in marks]


def _is_list(value: Any, total: int) -> bool:
    return isinstance(value, list) and len(value) >= total


def cut_point(
    config: Mapping[str, Any], total: int, layers: int, found: Pattern | None
) -> CutPoint:
    """Judge one number of first layers.

    Args:
        config: Of the reference.
        total: Layers of the reference.
        layers: How many are kept.
        found: The pattern of the reference's layers.
    """
    if layers == total:
        return CutPoint(layers, True, True, "the whole reference")
    try:
        cut_config(config, layers)
    except (RecipeError, UnsupportedModelError) as error:
        return CutPoint(layers, False, None, error.message)
    if found is None:
        return CutPoint(layers, True, None, "the kinds of layers follow no pattern")
    if found.is_complete(layers):
        reason = (
            "the layers are alike" if found.period == 1 else f"whole patterns of {found.period}"
        )
        return CutPoint(layers, True, True, reason)
    if layers <= found.lead:
        reason = f"only layers that come before the pattern, which begins with layer {found.lead}"
    else:
        rest = (layers - found.lead) % found.period
        reason = f"the last pattern has {rest} of its {found.period} layers"
    return CutPoint(layers, True, False, reason)
