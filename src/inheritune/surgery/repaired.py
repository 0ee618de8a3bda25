"""Describe the tensors that a repair has changed, to be written and listed by `inherit`.

The repair itself needs a running model: see the package `repair`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from inheritune.model_files.write import TargetTensor


@dataclass(frozen=True)
class RepairedTensors:
    """Tensors to write in place of the reference's."""

    tensors: Mapping[str, TargetTensor]  # by their names in the target
    # The entry ``"repair"`` of inherit.json. ``"layers"`` lists those that were changed, each with
    # the names of its changed ``"tensors"``.
    record: Mapping[str, Any] = field(default_factory=dict)


UNREPAIRED = RepairedTensors({})


def repaired_names(record: Mapping[str, Any]) -> set[str]:
    """Return the names of the repaired tensors of a target, by the record that is its inherit.json.

    Raises:
        ValueError: The entry is garbled.
    """
    repair = record.get("repair", {"layers": []})
    if not isinstance(repair, dict) or not isinstance(layers := repair.get("layers"), list):
        raise ValueError("repair")
    names: set[str] = set()
    for layer in layers:
        tensors = layer.get("tensors") if isinstance(layer, dict) else None
        if not isinstance(tensors, list) or not all(isinstance(name, str) for name in tensors):
            raise ValueError("repair")
        names.update(tensors)
    return names
