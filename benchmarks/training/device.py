"""Wait for a GPU, and read its memory and versions.

    python -m training.device

says which card there is, as JSON; null: none.
"""

import json
from collections.abc import Mapping
from typing import Any

import torch


def waiting_for(device: str, job: Mapping[str, Any]) -> tuple[Any, ...]:
    """The arguments of `Turns`: steps on a card are only put into a queue."""
    least_s = job.get("least_s", 0.0)
    if device != "cuda":
        return None, least_s

    def facts() -> dict[str, Any]:
        return {"card_mib": torch.cuda.max_memory_allocated() / 2**20}

    return torch.cuda.synchronize, least_s, facts


def card() -> dict[str, Any] | None:
    """Name, memory, versions of the card that a training would take."""
    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(0)
    return {
        "name": properties.name,
        "memory_bytes": properties.total_memory,
        "bf16": torch.cuda.is_bf16_supported(including_emulation=False),
        "build": torch.version.cuda or f"ROCm {torch.version.hip}",
    }


if __name__ == "__main__":
    print(json.dumps(card()))
