"""Read what adapter_config.json says of a LoRA: whether it is a plain one, and its scales."""

import math
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from inheritune.errors import UnsupportedModelError, escape

WEIGHTS = "adapter_model.safetensors"
# What a plain LoRA has in these fields, or leaves out; anything else is computed in another way.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal"),
    **dict.fromkeys(
        [
            *("use_dora", "lora_bias", "use_qalora", "layer_replication", "target_parameters"),
            *("trainable_token_indices", "alora_invocation_tokens", "megatron_config"),
            *("arrow_config", "use_bdlora", "velora_config", "monteclora_config"),
        ],
        (False, None, [], {}),
    ),
}
# A module's name or the end of one, as a regular expression: nothing in it can repeat or choose.
_PLAIN_KEY = re.compile(r"\^?(\w|-|\\?\.)+\$?")


def refuse_other_kinds(config: Mapping[str, Any], source: Path) -> None:
    """Refuse what is no plain LoRA in safetensors."""
    for key, plain in _PLAIN.items():
        if key in config and config[key] not in plain:
            raise other_kind(source, f"{key} is {escape(repr(config[key]), 60)}")
    if not (source / WEIGHTS).exists():
        raise other_kind(source, f"there is no {WEIGHTS}")


def other_kind(source: Path, why: str) -> UnsupportedModelError:
    """Word the refusal of an adapter that PEFT alone merges."""
    return UnsupportedModelError(
        f"{source} is no plain LoRA adapter in safetensors: {why}.",
        f"Merge it with peft: `AutoPeftModelForCausalLM.from_pretrained({str(source)!r})"
        '.merge_and_unload().save_pretrained("OUT")`, and use OUT.',
    )


def patterns_of(
    config: Mapping[str, Any], modules: Collection[str], source: Path
) -> dict[str, dict[str, Any]]:
    r"""Return ranks and alphas by module where they differ from the config's ``r`` and alpha.

    Keys are regular expressions, as PEFT reads them: ``re.match(rf"(.*\.)?({key})$", module)``, and
    the first that matches counts. Only names are taken, since others may not end; and none that
    matches no module, since it was meant for one.
    """
    found: dict[str, dict[str, Any]] = {}
    for field in ("rank_pattern", "alpha_pattern"):
        entries = config.get(field) or {}
        if not isinstance(entries, dict):
            raise other_kind(source, f"{field} is {escape(repr(entries), 60)}")
        found[field] = {}
        for key, value in entries.items():
            if not _PLAIN_KEY.fullmatch(key):
                raise other_kind(
                    source, f"{field} has {escape(repr(key))}, more than a module's name"
                )
            matching = [m for m in modules if re.match(rf"(.*\.)?({key})$", m)]
            if not matching:
                raise other_kind(
                    source, f"{field} has {escape(repr(key))}, which is no module of it"
                )
            found[field] = dict.fromkeys(matching, value) | found[field]
    return found


def scale_of(
    config: Mapping[str, Any],
    patterns: Mapping[str, Mapping[str, Any]],
    module: str,
    rank: int,
    source: Path,
) -> float:
    """Return alpha / r of a module, or alpha / sqrt(r) with ``use_rslora``."""
    r = patterns["rank_pattern"].get(module, config.get("r"))
    alpha = patterns["alpha_pattern"].get(module, config.get("lora_alpha"))
    if type(r) is not int or r != rank or type(alpha) not in (int, float):
        raise other_kind(
            source,
            f"{escape(module)} has the rank {rank}, its config r={escape(repr(r))}, "
            f"alpha={escape(repr(alpha))}",
        )
    return float(alpha / math.sqrt(r) if config.get("use_rslora") else alpha / r)
