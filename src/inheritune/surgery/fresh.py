"""Tensors of a target that are not inherited, but initialised by its class."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from inheritune.errors import UnsupportedModelError
from inheritune.model_files.directory import open_model
from inheritune.model_files.write import TargetTensor
from inheritune.surgery.class_check.ask_class import ask
from inheritune.surgery.plan import InheritPlan
from inheritune.system.reading import escape

__all__ = ["STRAY", "make_fresh"]

# Left over in old files; the class computes them and would not write them.
STRAY = (".attn.bias", ".attn.masked_bias", ".attention.bias", ".masked_bias", "inv_freq")


def make_fresh(
    plan: InheritPlan, fresh: set[str], seed: int, scratch: Path, normal: Sequence[str] = ()
) -> dict[str, TargetTensor]:
    """Tensors of a target, taken from a freshly initialised model instead of the reference.

    Args:
        plan: Of the target.
        fresh: Names of those that are not inherited.
        seed: The same one gives the same weights.
        scratch: Directory for the fresh model; does not exist. Not needed once they are copied.
        normal: Those of them that are drawn from N(0, 1) instead.

    Returns:
        By name. What old files hold beside the weights is not among them.

    Raises:
        SourceError: The class is unknown or refuses the config.
        UnsupportedModelError: The class gives a tensor no such name, or another shape.
    """
    if not fresh:
        return {}
    ask(
        "initialise", config=plan.config, seed=seed, out=str(scratch.resolve()), normal=list(normal)
    )
    model = open_model(str(scratch))
    found: dict[str, TargetTensor] = {}
    inner = model.container.prefix.partition(".")[0]  # files of GPT-2 on the Hub leave it out
    for tensor in plan.tensors:
        made = model.tensors.get(tensor.name) or model.tensors.get(f"{inner}.{tensor.name}")
        if tensor.name not in fresh or (made is None and tensor.name.endswith(STRAY)):
            continue
        if made is None or made.shape != tensor.shape:
            raise UnsupportedModelError(
                f"the class of the model does not write {escape(tensor.name)} of the shape "
                f"{tensor.shape}, so it cannot be initialised.",
                "Inherit all parts of this model.",
            )
        found[tensor.name] = replace(tensor, source=made)
    return found
