"""Estimate cuts and recipes."""

import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inheritune.api.call import PathLike, ProgressOption, StoredModel, call, refuse_below
from inheritune.errors import RecipeError, escape

if TYPE_CHECKING:
    from inheritune.planning.candidates import Candidates, CutPlan
    from inheritune.planning.recipe_plan import RecipePlan
    from inheritune.recipe.load import RecipeFile
    from inheritune.recipe.schema import Recipe


def plan(
    what: "StoredModel | Recipe | RecipeFile",
    layers: int | str | None = None,
    *,
    revision: str | None = None,
    tokens: int | str | None = None,
    seq_len: int | None = None,
    device: str | None = None,
    devices: int | str = 1,
    mfu: float = 0.4,
    rate: float | None = None,
    mtbf: float | None = None,
    network: float | None = None,
    parameters: int | str | None = None,
    memory: int | str | None = None,
    speed: float | str | None = None,
    runs: PathLike = "runs",
    progress: ProgressOption = True,
    **sections: Any,
) -> "Candidates | CutPlan | RecipePlan":
    """Estimate size, time and cost of a cut or of a recipe, without running it.

    Args:
        what: A model, of which only headers are read, or a config.json where there are no weights;
            or a recipe: a path that ends in ``.yaml``, a `Recipe`, or what `load_recipe` returns.
        layers: Look at this cut in detail, as for `inherit`; None: a table of cuts.
        revision: Branch, tag or commit of a Hub id.
        tokens: Training tokens to estimate the time for, such as ``"1B"``.
        seq_len: Tokens per sequence; None: the model's positions, 2048 at most.
        device: Device to estimate for, such as ``"h100"``, ``"a100"``, ``"rtx4090"`` or ``"cpu"``.
        devices: Number of devices; or of a recipe a range such as ``"8..1024"``, doubled from the
            first to the last.
        mfu: Share of the device's peak that training reaches, in (0, 1].
        rate: Dollars per hour of one device.
        mtbf: Hours between failures of one device; None: 50,000.
        network: Bytes per second between machines, for each device; None: 40e9.
        parameters: Show the cut with the most layers that has at most so many parameters, such as
            ``"5B"``.
        memory: The same for bytes of the weights and of the cache of ``seq_len`` tokens, such as
            ``"8GB"`` (10^9) or ``"8GiB"`` (2^30).
        speed: The same for a speed of so many times that of the reference, such as ``1.3``,
            estimated from the FLOPs of a token.
        runs: Directory of runs, for a recipe.
        progress: True draws a bar, False is silent, a function is called with each event.
        **sections: Keys of the recipe that replace the file's, as for `derive`.

    Returns:
        A table with a row for each cut (``candidates``), a cut in detail, or a recipe's plan.

    Raises:
        RecipeError: There are no such layers, no safe cut reaches the goal, or the recipe is wrong.
    """
    from inheritune.model_files.in_memory import opened_model
    from inheritune.planning.candidates import Budget, list_candidates, plan_cut
    from inheritune.planning.cluster import device_counts, links_of
    from inheritune.planning.goal import goal_of, plan_goal
    from inheritune.planning.planned_reference import open_to_plan
    from inheritune.planning.recipe_plan import plan_recipe
    from inheritune.recipe.sections import is_recipe, recipe_with
    from inheritune.recipe.values import amount_of_tokens
    from inheritune.system.devices import DEFAULT_MFU, Speed, choose_device

    refuse_below(1, seq_len=seq_len)
    goal = goal_of(parameters, memory, speed)
    of_model = {"layers": layers, "revision": revision, "tokens": tokens, "seq_len": seq_len}
    if is_recipe(what) and (name := _first_given(of_model)):
        raise RecipeError(
            f"plan takes {name} with a model; a recipe has keys for it.",
            "Leave it out, or change the key: --set KEY=VALUE",
        )
    if goal is not None and (layers is not None or is_recipe(what)):
        raise RecipeError(
            f"--{goal.name} chooses the layers of a model; layers or a recipe choose them, too.",
            "Give one of the two.",
        )
    of_device = {"rate": rate, "devices": None if str(devices) == "1" else devices}
    of_device |= {"mtbf": mtbf, "network": network}
    of_device["mfu"] = None if mfu == DEFAULT_MFU else mfu
    if device is None and (name := _first_given(of_device)):
        raise RecipeError(
            f"--{name} is of a device, and none is named.", "Name it, such as --device h100."
        )
    counts = device_counts(devices)
    training_speed = Speed(choose_device(device), counts[0], mfu, rate) if device else None
    if not is_recipe(what) and len(counts) > 1:
        raise RecipeError(
            f"--devices {escape(str(devices))} goes with a recipe, not with a model.",
            "Name one number.",
        )
    with call(progress), ExitStack() as stack:
        if is_recipe(what):
            recipe = recipe_with(what, sections).recipe  # type: ignore[arg-type]
            several = counts if counts[-1] > 1 else ()
            links = links_of(training_speed, mtbf, network)
            return plan_recipe(recipe, Path(runs) / recipe.name, training_speed, several, links)
        if sections:
            raise RecipeError(
                f"plan has no setting {escape(', '.join(sections))} for a model.",
                "Keys of a recipe go with a recipe; see help(inheritune.plan) for the others.",
            )
        if isinstance(what, str | os.PathLike):
            model = open_to_plan(os.fspath(what), revision)
        else:
            model = stack.enter_context(opened_model(what))  # type: ignore[arg-type]
        budget = Budget(
            seq_len, None if tokens is None else amount_of_tokens(tokens), training_speed
        )
        if goal is not None:
            return plan_goal(model, goal, budget)
        if layers is None:
            return list_candidates(model, budget)
        return plan_cut(model, str(layers), budget)


def _first_given(options: Mapping[str, object]) -> str | None:
    return next((name for name, value in options.items() if value is not None), None)
