"""Plan a run: its trainings, and the time, memory and disk that they need."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from inheritune.data.shards import id_type
from inheritune.data.tokens import open_tokens
from inheritune.errors import UnsupportedModelError
from inheritune.model_files.config import Edit, cut_config, text_config
from inheritune.model_files.directory import ModelDirectory
from inheritune.model_files.flops import first_int
from inheritune.model_files.training_memory import Memory
from inheritune.planning.cluster import USUAL_LINKS, ChangedRun, ClusterPlan, Links, plan_cluster
from inheritune.planning.fitting import (
    cheapest_change,
    memory_of,
    micro_batch_note,
    room_on,
    shared_by,
    trained_model,
)
from inheritune.planning.planned_reference import (
    planned_reference,
    shape_notes,
    with_taken_reference,
)
from inheritune.planning.selection_cost import selection_flops
from inheritune.planning.training_notes import growth_notes, training_notes
from inheritune.planning.trainings import PlannedTraining, Planner
from inheritune.recipe.published import deviations
from inheritune.recipe.schema import Recipe
from inheritune.recipe.training import Train
from inheritune.run_directory import Run
from inheritune.steps.family import check_patched
from inheritune.steps.growth import Growth, first_layers
from inheritune.steps.initial_weights import check_starts
from inheritune.steps.limits import checkpoint_bytes, stored_checkpoints
from inheritune.steps.reference import Reference
from inheritune.steps.repaired_start import refuse_short_text
from inheritune.surgery.class_check.ask_class import language_problem
from inheritune.surgery.sizes import Sizes
from inheritune.system.devices import Price, Speed, choose_device
from inheritune.system.rows import Rows

# Shown in a plan for no named device. An H200 multiplies as fast as an H100.
_USUAL_DEVICES = ("h100", "a100", "rtx4090", "cpu")


@dataclass(frozen=True)
class RecipePlan(Rows):
    """Everything about a run that is known before it starts."""

    name: str
    run: Path
    reference: str  # the model as the recipe names it; "trained here" if the recipe trains it
    # Commit that the reference is pinned to from now on; None unless it is on the Hub.
    commit: str | None
    reference_layers: int
    reference_params: int
    download_bytes: int  # bytes of the reference that are still to be downloaded
    # FLOPs of the scores by which layers are chosen; None: none are chosen so.
    selection_flops: float | None
    # In the order of the run, with every round that may become necessary.
    trainings: tuple[PlannedTraining, ...]
    most_rounds: int  # largest possible number of rounds
    growth: str  # number and sizes of the rounds, in words
    unique_tokens: int | None  # tokens of the text, or the most there may be; None: not known yet
    edits: tuple[Edit, ...]  # changed fields of config.json in the first round, and why
    memory: Memory  # estimate of one device, for the training that needs the most
    room: int | None  # bytes that one of the named devices has for it; None: not known
    change: ChangedRun | None  # the cheapest with which it fits; None: it fits, or nothing helps
    disk: dict[str, int | None]  # estimated bytes by purpose; None where unknown
    save_bytes: int  # size of one checkpoint of the largest training
    speed: Speed | None  # devices to run on; None: none were named
    price_per_hour: float | None  # price of the machine, from the recipe; None: unknown
    currency: str
    clusters: tuple[ClusterPlan, ...]  # for each number of devices asked about, if several
    notes: tuple[str, ...]  # sentences on what may surprise

    @property
    def flops(self) -> float:
        """FLOPs of all trainings, and of the choice of layers."""
        return sum(training.flops for training in self.trainings) + (self.selection_flops or 0.0)

    @property
    def price(self) -> Price | None:
        """Time and price of `flops`, without validation and loading; None without devices."""
        return None if self.speed is None else self.speed.price(self.flops)

    @property
    def cost(self) -> float | None:
        """Cost of all trainings at the machine's price per hour; None if either is unknown."""
        hours = None if self.price is None else self.price.hours
        if hours is None or self.price_per_hour is None:
            return None
        return hours * self.price_per_hour

    @property
    def usual_speeds(self) -> tuple[Speed, ...]:
        """The named devices, or else one each of some usual ones, to show hours for."""
        if self.speed is not None:
            return (self.speed,)
        return tuple(Speed(choose_device(name)) for name in _USUAL_DEVICES)

    def as_json(self) -> dict[str, Any]:
        """Return the plan as JSON values."""
        hours = {
            speed.device.name: {
                "mfu": speed.mfu,
                "devices": speed.count,
                "trainings": [speed.price(t.flops).hours for t in self.trainings],
                "total": speed.price(self.flops).hours,
            }
            for speed in self.usual_speeds
        }
        return asdict(self) | {
            "run": str(self.run),
            "flops": self.flops,
            "price": None if self.price is None else asdict(self.price),
            "memory": asdict(self.memory) | {"total": self.memory.total},
            "cost": self.cost,
            "hours": hours,
        }

    def rows(self) -> list[dict[str, Any]]:
        """Return one mapping for each training."""
        return [asdict(training) for training in self.trainings]


def plan_recipe(
    recipe: Recipe,
    root: Path,
    speed: Speed | None = None,
    counts: Sequence[int] = (),
    links: Links = USUAL_LINKS,
) -> RecipePlan:
    """Plan a run without training, preparing or downloading anything but headers.

    A reference on the Hub is pinned: its commit is written into the run's directory, and `run`
    uses that commit. Otherwise nothing is written.

    Args:
        speed: Devices to run on; None: estimate FLOPs only.
        counts: Numbers of these devices to estimate the run for; none: no estimate of a cluster.
        links: What connects them.

    Raises:
        RecipeError: The recipe asks for layers that the reference does not have.
        DataError: The tokens are prepared, and too few for a repair.
        SourceError: The reference cannot be used, or its pinned commit is gone.
        UnsupportedModelError: A variant cannot be built from it, or its size cannot be computed
            without torch.
    """
    # --- the reference ---
    recipe = with_taken_reference(recipe, Run(root))
    model = planned_reference(recipe, Run(root))
    if problem := language_problem(model):
        raise UnsupportedModelError(problem)
    sizes = Sizes(model)
    whole = sizes.counts(range(model.layers), recipe.train.seq_len)
    reference = Reference(
        model,
        model.name,
        whole.params,
        whole.flops_per_token,
        {},
        trained_here=recipe.reference.train is not None,
    )

    # --- the rounds: as many as there can be, since only training tells which one matches ---
    first, most = first_layers(recipe, reference)
    growth = Growth.of(recipe, model, first, most)
    round_sizes = growth.longest()
    check_starts(recipe, model, growth.ends())
    check_patched(recipe, model, growth)

    # --- the trainings ---
    unique, exact = _unique_tokens(recipe, Run(root))
    planner = Planner(recipe, sizes, speed, unique)
    trainings = planner.all(round_sizes)

    # --- the memory of the training that needs the most ---
    planned = [(t, trained_model(sizes, t, whole.params)) for t in trainings]

    def memory_on(train: Train, devices: int) -> Memory:
        on = None if speed is None else replace(speed, count=devices)
        return max((memory_of(t, train, on) for _, t in planned), key=lambda memory: memory.total)

    devices = 1 if speed is None else speed.count
    # Of a range, some numbers may not suit train.shard_size; a single one is refused.
    train = shared_by(recipe.train, devices) if len(counts) > 1 else recipe.train
    memory, room = memory_on(train, devices), room_on(speed)
    change = None
    if speed is not None and room is not None and memory.total > room:
        found = cheapest_change(train, devices, room, memory_on)
        if found is not None:
            on = replace(speed, count=found.devices)
            plan = plan_cluster(found.train, on, planned, memory_on, links)
            change = ChangedRun(found.text, plan)
    return RecipePlan(
        name=recipe.name,
        run=root,
        reference=recipe.reference.model or "trained here",
        commit=model.revision,
        reference_layers=model.layers,
        reference_params=whole.params,
        download_bytes=model.missing_bytes(model.tensors.values()),
        selection_flops=selection_flops(recipe, sizes, round_sizes),
        trainings=trainings,
        most_rounds=len(round_sizes),
        growth=str(growth),
        unique_tokens=unique,
        edits=tuple(cut_config(model.config, round_sizes[0])[1]),
        memory=memory,
        room=room,
        change=change,
        disk=_disk(recipe, model, trainings, unique, planner),
        save_bytes=max(_checkpoint_bytes(training) for training in trainings),
        speed=speed,
        price_per_hour=recipe.cost.price_per_hour,
        currency=recipe.cost.currency,
        clusters=()
        if speed is None
        else tuple(
            plan_cluster(recipe.train, replace(speed, count=count), planned, memory_on, links)
            for count in counts
        ),
        notes=(
            *filter(None, [micro_batch_note(train, planned, speed)]),
            *growth_notes(recipe, growth, planner.flops_per_token),
            *training_notes(recipe, trainings, unique, exact),
            *shape_notes(model),
            *deviations(recipe.resolved()),
        ),
    )


def _unique_tokens(recipe: Recipe, run: Run) -> tuple[int | None, bool]:
    """Return the tokens of an epoch, and whether that number is exact."""
    if (run.tokens / "manifest.json").exists():
        tokens = open_tokens(run.tokens)
        refuse_short_text(recipe, tokens)
        return tokens.train.num_samples(recipe.train.seq_len) * recipe.train.seq_len, True
    refuse_short_text(recipe, None)
    return recipe.data.tokens, False


def _checkpoint_bytes(training: PlannedTraining) -> int:
    return checkpoint_bytes(training.params, training.trained_params)


def _disk(
    recipe: Recipe,
    model: ModelDirectory,
    trainings: Sequence[PlannedTraining],
    unique: int | None,
    planner: Planner,
) -> dict[str, int | None]:
    largest = max(map(_checkpoint_bytes, trainings))
    rows = first_int(text_config(model.config), ("vocab_size",)) or 2**16 + 1
    models = sum(training.bytes for training in trainings)
    target = max(t.bytes for t in trainings if t.round is not None)
    # The stored predictions: k ids with fp16 logits, and one fp32 for all other ids.
    entry = id_type(rows).itemsize + 2
    logits = sum(tokens * (top_k * entry + 4) for (top_k, _), tokens in planner.stored.items())
    return {
        "reference": model.missing_bytes(model.tensors.values())
        # A copy of the language model is kept in the run.
        + model.text_only * sum(tensor.size for tensor in model.tensors.values()),
        "tokens": None if unique is None else unique * id_type(rows).itemsize,
        "checkpoints": largest * stored_checkpoints(recipe.train.keep),
        "models": models + target + planner.kept_masters + planner.passing_master,
        **({"logits": logits} if logits else {}),
    }
