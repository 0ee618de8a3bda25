"""Find where a reference can be cut, and which cuts leave its pattern of layers whole."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from inheritune.errors import RecipeError, UnsupportedModelError
from inheritune.model_files.config import cut_config, text_config
from inheritune.model_files.config_fields import PER_LAYER, expand_runs
from inheritune.model_files.directory import ModelDirectory
from inheritune.model_files.layers import layer_kinds
from inheritune.surgery.sizes import LayerCounts


@dataclass(frozen=True)
class Pattern:
    """The pattern in which kinds of layers repeat."""

    lead: int  # layers before the pattern begins, such as dense ones before those with experts
    period: int  # layers until it repeats; 1: all are alike

    def is_complete(self, layers: int) -> bool:
        """Whether the first ``layers`` layers end with a whole period."""
        return layers > self.lead and (layers - self.lead) % self.period == 0

    def __str__(self) -> str:
        repeat = "alike" if self.period == 1 else f"in a pattern of {self.period}"
        if not self.lead:
            return f"all layers are {repeat}" if self.period == 1 else f"layers come {repeat}"
        return f"{self.lead} layers of their own, the others {repeat}"


@dataclass(frozen=True)
class CutPoint:
    """Whether a reference can be cut after some number of layers."""

    layers: int
    allowed: bool  # by the config; the model's class, which needs torch, may still refuse
    complete: bool | None  # a period of the pattern ends there; None: there is no pattern
    reason: str

    @property
    def is_safe(self) -> bool:
        """Whether the cut is allowed and breaks no pattern."""
        return self.allowed and self.complete is not False


def find_pattern(reference: ModelDirectory, layers: Sequence[LayerCounts]) -> Pattern | None:
    """Find the pattern in which kinds of layers repeat.

    Two layers are of one kind if the names and shapes of their tensors and the config's entries for
    them are equal. The pattern occurs at least twice; of several, the one with the smallest lead
    plus period is returned.
    """
    forms = _forms(reference, layers)
    total = len(forms)
    best: Pattern | None = None
    for period in range(1, total // 2 + 1):
        # Go back from the end as long as each layer equals the one a period later.
        lead = total - period
        while lead and forms[lead - 1] == forms[lead - 1 + period]:
            lead -= 1
        shorter = best is None or lead + period < best.lead + best.period
        if lead <= total - 2 * period and shorter:
            best = Pattern(lead, period)
    return best if best or total > 1 else Pattern(0, 1)


def _forms(reference: ModelDirectory, layers: Sequence[LayerCounts]) -> list[int]:
    section, total = text_config(reference.config), len(layers)
    lists = [value for key in PER_LAYER if isinstance(value := section.get(key), list)]
    statements = [value for value in lists if len(value) >= total]
    if (kinds := layer_kinds(section, total)) is not None:
        statements.append(kinds)
    kinds = expand_runs(section.get("attention_types"), total)
    if kinds is not None and len(kinds) >= total:
        statements.append(kinds[:total])
    for key in ("sliding_window_pattern", "global_attn_every_n_layers", "no_rope_layer_interval"):
        if type(every := section.get(key)) is int and every > 0:
            statements.append([(i + 1) % every == 0 for i in range(total)])
    if type(every := section.get("n_layers_per_attn_res_block")) is int and every > 0:
        statements.append([i % every for i in range(total)])
    numbers: dict[Any, int] = {}
    marks = [
        (layer.form, *(str(values[i]) for values in statements)) for i, layer in enumerate(layers)
    ]
    return [numbers.setdefault(mark, len(numbers)) for mark in marks]


def cut_point(
    config: Mapping[str, Any], total: int, layers: int, pattern: Pattern | None
) -> CutPoint:
    """Judge a cut of a reference with ``total`` layers to its first ``layers`` layers."""
    if layers == total:
        return CutPoint(layers, True, True, "the whole reference")
    try:
        cut_config(config, layers)
    except (RecipeError, UnsupportedModelError) as error:
        return CutPoint(layers, False, None, error.message)
    if pattern is None:
        return CutPoint(layers, True, None, "the kinds of layers follow no pattern")
    if pattern.is_complete(layers):
        reason = (
            "the layers are alike" if pattern.period == 1 else f"whole patterns of {pattern.period}"
        )
        return CutPoint(layers, True, True, reason)
    if layers <= pattern.lead:
        reason = f"only layers that come before the pattern, which begins with layer {pattern.lead}"
    else:
        rest = (layers - pattern.lead) % pattern.period
        reason = f"the last pattern has {rest} of its {pattern.period} layers"
    return CutPoint(layers, True, False, reason)
