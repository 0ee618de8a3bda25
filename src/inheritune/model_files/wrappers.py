"""Take the names that wrappers of a module add off the names of its weights."""

import shlex
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from inheritune.errors import SourceError, UnsupportedModelError, escape

INNER = {
    "_orig_mod": "torch.compile",
    "_fsdp_wrapped_module": "FSDP",
    "_fpw_module": "FSDP",
    "_checkpoint_wrapped_module": "activation checkpointing",
}
"""Parts of a name that a wrapper adds, at the beginning or within, and the wrapper."""

OUTER = {
    "module.": "DataParallel or DeepSpeed",
    "base_model.model.": "PEFT",
}
"""Beginnings of all names that a wrapper adds, and the wrapper."""

# A LightningModule with the model in `self.model`.
_LIGHTNING = ("model.model.", "model.lm_head.")
_UNMERGED = (".lora_A.", ".lora_B.", ".base_layer.", ".lora_embedding_A.", ".lora_magnitude_vector")


def unwrapped(
    names: Collection[str], *, lightning: bool = False
) -> tuple[dict[str, str], list[str]]:
    """Take off what wrappers add.

    Args:
        lightning: Also take off the ``model.`` that a LightningModule adds.

    Returns:
        The new name by the old one, and each part that was taken off with its wrapper.
    """
    new = {name: ".".join(p for p in name.split(".") if p not in INNER) for name in names}
    parts = {part for name in names for part in name.split(".")} if new else set()
    found = [f"{part} ({wrapper})" for part, wrapper in INNER.items() if part in parts]
    while new and (outer := next((o for o in OUTER if _all_begin(new.values(), o)), None)):
        new = {name: short.removeprefix(outer) for name, short in new.items()}
        found.append(f"{outer} ({OUTER[outer]})")
    is_lightning = any(short.startswith(_LIGHTNING) for short in new.values())
    if lightning and is_lightning and _all_begin(new.values(), "model."):
        new = {name: short.removeprefix("model.") for name, short in new.items()}
        found.append("model. (Lightning)")
    return new, found


def refuse_two_names(new_names: Mapping[str, str], wrappers: list[str], place: Path) -> None:
    """Refuse a tensor that is there with a wrapper's name and without: one would be lost."""
    seen: dict[str, str] = {}
    for name, short in new_names.items():
        if (other := seen.setdefault(short, name)) != name:
            raise SourceError(
                f"{place.name} holds a tensor with and without the names of {wrappers[0]}: "
                f"{escape(other)} and {escape(name)}.",
                "Save the wrapped model's own state_dict once, and convert that.",
            )


def _all_begin(names: Iterable[str], start: str) -> bool:
    return all(name.startswith(start) for name in names)


def refuse_wrapped(names: Collection[str], directory: Path) -> None:
    """Refuse a model whose names hold those of a wrapper, which its class does not know."""
    if adapter := next((name for name in names if any(u in name for u in _UNMERGED)), None):
        raise UnsupportedModelError(
            f"{directory} holds {escape(adapter)}: a model of PEFT whose adapter is not merged.",
            "Save what its merge_and_unload() returns, and use that.",
        )
    if found := unwrapped(names)[1]:
        raise UnsupportedModelError(
            f"the tensor names of {directory} hold {found[0]}, which wraps the model.",
            f"Take it off: `inheritune convert {shlex.quote(str(directory))} OUT`, and use OUT.",
        )
