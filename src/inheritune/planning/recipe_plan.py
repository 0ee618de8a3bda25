"""What carrying out a recipe would take, told without doing any of it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from inheritune.data.shards import id_type
from inheritune.data.tokens import open_tokens
from inheritune.model_files.config import Edit, cut_config, text_config
from inheritune.model_files.directory import ModelDirectory
from inheritune.model_files.flops import first_int
from inheritune.planning.memory import Memory, estimate_memory
from inheritune.planning.planned_reference import (
    planned_reference,
    shape_notes,
    with_taken_reference,
)
from inheritune.planning.trainings import PlannedTraining, Planner, growth_notes, training_notes
from inheritune.recipe.deviations import deviations
from inheritune.recipe.schema import Recipe
from inheritune.run_directory import Run
from inheritune.steps.growth import Growth, first_layers
from inheritune.steps.initial_weights import check_starts
from inheritune.steps.limits import checkpoint_bytes, weights_bytes
from inheritune.steps.reference import Reference
from inheritune.surgery.sizes import Sizes
from inheritune.system.devices import Price, Speed, choose_device

__all__ = ["RecipePlan", "plan_recipe"]

# For whom a plan is read that names no device; an H200 multiplies as fast as an H100.
_USUAL_DEVICES = ("h100", "a100", "rtx4090", "cpu")


@dataclass(frozen=True)
class RecipePlan:
    """A run, as far as it can be told before.

    Attributes:
        name: Of the run.
        run: Its directory.
        reference: The model, as the recipe names it; ``"trained here"`` where it is.
        commit: At which it is pinned from now on; None for what is not on the Hub.
        reference_layers: Layers of the reference.
        reference_params: Its parameters.
        download_bytes: Of the reference, still to come from the Hub.
        trainings: In the order of the run, with every round that can become necessary.
        most_rounds: How many those are.
        growth: How many rounds there may be, of which sizes, in words.
        unique_tokens: Of the text, prepared or at most; None: not known yet.
        edits: Of config.json in the first round, and why.
        memory: Estimated, of the training that needs the most.
        disk: Bytes by what takes them, estimated; an unknown amount is None.
        save_bytes: Of one checkpoint of the largest training.
        speed: What it runs on; None: no device was named.
        price_per_hour: Of the machine, as the recipe has it; None: not known.
        currency: Of it.
        notes: What else to know.
    """

    name: str
    run: Path
    reference: str
    commit: str | None
    reference_layers: int
    reference_params: int
    download_bytes: int
    trainings: tuple[PlannedTraining, ...]
    most_rounds: int
    growth: str
    unique_tokens: int | None
    edits: tuple[Edit, ...]
    memory: Memory
    disk: dict[str, int | None]
    save_bytes: int
    speed: Speed | None
    price_per_hour: float | None
    currency: str
    notes: tuple[str, ...]

    @property
    def flops(self) -> float:
        """Of all trainings."""
        return sum(training.flops for training in self.trainings)

    @property
    def price(self) -> Price | None:
        """Of all trainings, without validation and loading."""
        return None if self.speed is None else self.speed.price(self.flops)

    @property
    def cost(self) -> float | None:
        """Of all trainings, at the machine's price per hour; None: no device, or no price."""
        hours = None if self.price is None else self.price.hours
        if hours is None or self.price_per_hour is None:
            return None
        return hours * self.price_per_hour

    @property
    def usual_speeds(self) -> tuple[Speed, ...]:
        """What hours are shown for: what was named, or one each of some usual devices."""
        if self.speed is not None:
            return (self.speed,)
        return tuple(Speed(choose_device(name)) for name in _USUAL_DEVICES)

    def as_json(self) -> dict[str, Any]:
        """The plan as JSON values."""
        price = None if self.price is None else asdict(self.price)
        memory = asdict(self.memory) | {"total": self.memory.total}
        own = {"run": str(self.run), "flops": self.flops, "price": price, "memory": memory}
        own |= {"cost": self.cost}
        hours = {
            speed.device.name: {
                "mfu": speed.mfu,
                "devices": speed.count,
                "trainings": [speed.price(t.flops).hours for t in self.trainings],
                "total": speed.price(self.flops).hours,
            }
            for speed in self.usual_speeds
        }
        return asdict(self) | own | {"hours": hours}


def plan_recipe(recipe: Recipe, root: Path, speed: Speed | None = None) -> RecipePlan:
    """Tell what a run would take. Nothing is trained, prepared or downloaded but headers.

    A reference on the Hub is pinned: the commit that is looked at is written into the run's
    directory, and `run` takes that one. Otherwise nothing is written.

    Args:
        recipe: What would be done.
        root: The run's directory.
        speed: What it would run on; None: FLOPs only.

    Raises:
        RecipeError: The recipe asks for layers that the reference does not have.
        SourceError: The reference cannot be used, or its pinned commit is gone.
        UnsupportedModelError: A variant cannot be built from it, or its size cannot be told
            without torch.
    """
    recipe = with_taken_reference(recipe, Run(root))
    model = planned_reference(recipe, Run(root))
    trained_here = recipe.reference.train is not None
    sizes, seq_len = Sizes(model), recipe.train.seq_len
    whole = sizes.counts(range(model.layers), seq_len)
    opened = Reference(
        model, model.name, whole.params, whole.flops_per_token, {}, trained_here=trained_here
    )
    first, most = first_layers(recipe, opened)
    unique, exact = _unique_tokens(recipe, Run(root))
    growth = Growth.of(recipe, model, first, most)
    depths = growth.longest()
    check_starts(recipe, model, growth.ends())
    planner = Planner(recipe, sizes, speed, unique)
    trainings = planner.all(depths)
    memory = _memory(recipe, model, trainings, whole.params, _precision(recipe, speed))
    return RecipePlan(
        name=recipe.name,
        run=root,
        reference=recipe.reference.model or "trained here",
        commit=model.revision,
        reference_layers=model.layers,
        reference_params=whole.params,
        download_bytes=model.missing_bytes(model.tensors.values()),
        trainings=trainings,
        most_rounds=len(depths),
        growth=str(growth),
        unique_tokens=unique,
        edits=tuple(cut_config(model.config, depths[0])[1]),
        memory=memory,
        disk=_disk(recipe, model, trainings, unique, planner.stored),
        save_bytes=checkpoint_bytes(max(training.params for training in trainings)),
        speed=speed,
        price_per_hour=recipe.cost.price_per_hour,
        currency=recipe.cost.currency,
        notes=(
            *growth_notes(recipe, growth),
            *training_notes(recipe, trainings, unique, exact, memory, speed),
            *shape_notes(model),
            *deviations(recipe),
        ),
    )


def _memory(
    recipe: Recipe,
    model: ModelDirectory,
    trainings: Sequence[PlannedTraining],
    reference: int,
    precision: str,
) -> Memory:
    """Of the training that needs the most."""
    estimates = (
        estimate_memory(
            model.config,
            training.params,
            training.layers,
            recipe.train,
            precision,
            reference if training.beside else 0,
        )
        for training in trainings
    )
    return max(estimates, key=lambda memory: memory.total)


def _unique_tokens(recipe: Recipe, run: Run) -> tuple[int | None, bool]:
    """Tokens of an epoch, and whether that is exact."""
    if (run.tokens / "manifest.json").exists():
        tokens = open_tokens(run.tokens)
        return tokens.train.num_samples(recipe.train.seq_len) * recipe.train.seq_len, True
    return recipe.data.tokens, False


def _precision(recipe: Recipe, speed: Speed | None) -> str:
    if recipe.train.precision != "auto":
        return recipe.train.precision
    return "fp32" if speed is None else speed.device.precision


def _disk(
    recipe: Recipe,
    model: ModelDirectory,
    trainings: Sequence[PlannedTraining],
    unique: int | None,
    stored: Mapping[tuple[int, float, int], int],
) -> dict[str, int | None]:
    largest = max(training.params for training in trainings)
    rows = first_int(text_config(model.config), ("vocab_size",)) or 2**16 + 1
    models = sum(weights_bytes(training.params) for training in trainings)
    target = max(weights_bytes(t.params) for t in trainings if t.round is not None)
    logits = _logits_bytes(stored, rows)
    return {
        "reference": model.missing_bytes(model.tensors.values()),
        "tokens": None if unique is None else unique * id_type(rows).itemsize,
        # The one being written is there beside those that are kept.
        "checkpoints": checkpoint_bytes(largest) * (recipe.train.keep + 1),
        "models": models + target,
        **({"logits": logits} if logits else {}),
    }


def _logits_bytes(stored: Mapping[tuple[int, float, int], int], rows: int) -> int:
    """What variants keep of the reference's predictions: ids, fp16, and an fp32 for the rest."""
    each = id_type(rows).itemsize + 2
    return sum(tokens * (top_k * each + 4) for (top_k, _, _), tokens in stored.items())
