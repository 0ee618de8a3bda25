"""What carrying out a recipe would take, told without doing any of it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from inheritune.checkpoints.config import Edit, cut_config, text_config
from inheritune.checkpoints.flops import first_int
from inheritune.checkpoints.hub import is_hub_id
from inheritune.checkpoints.source import ModelDirectory, open_model
from inheritune.data.shards import id_type
from inheritune.data.tokenizer import open_tokenizer
from inheritune.data.tokens import open_tokens
from inheritune.derive import first_layers
from inheritune.deviations import deviations
from inheritune.durable import read_json_file
from inheritune.errors import InherituneError, MachineError, SourceError, UnsupportedModelError
from inheritune.inherit.devices import Price, Speed, choose_device
from inheritune.inherit.imagined import imagine
from inheritune.inherit.sizes import Sizes
from inheritune.known_configs import known_config
from inheritune.planning.memory import Memory, estimate_memory
from inheritune.planning.trainings import PlannedTraining, Planner
from inheritune.recipe import Recipe, ReferenceTraining
from inheritune.run import Run
from inheritune.steps.borrowed import read_benchmark
from inheritune.steps.disk import checkpoint_bytes, weights_bytes
from inheritune.steps.growth import Growth
from inheritune.steps.pinned import open_pinned, pinned_commit
from inheritune.steps.reference import Reference
from inheritune.steps.starts import check_starts

__all__ = ["RecipePlan", "plan_recipe"]

_BY_SHAPE = " (its published shape)"
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
    recipe = _with_taken_reference(recipe, Run(root))
    model = _reference(recipe, Run(root))
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
            *_growth_notes(recipe, growth),
            *_notes(recipe, trainings, unique, exact, memory, speed),
            *_notes_of_shape(model),
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


def _reference(recipe: Recipe, run: Run) -> ModelDirectory:
    wanted = recipe.reference
    if wanted.train is not None:
        if (run.reference / "model").is_dir():  # already trained
            return open_model(str(run.reference / "model"))
        return _imagined(wanted.train)
    assert wanted.model is not None  # the recipe has one or the other
    if pinned_commit(run, wanted.model, wanted.revision) is not None:
        return open_pinned(run, wanted.model, wanted.revision, whole=False)
    try:
        found = open_model(wanted.model, wanted.revision, whole=False)
    except (MachineError, SourceError) as error:
        known = _published_shape(wanted.model, error)
        if known is None:
            raise
        return known
    if found.revision is None:
        return found
    run = Run.create(run.root)
    with run.lock():  # of `plan` and `run`, one decides
        return open_pinned(run, wanted.model, wanted.revision, whole=False)


def _with_taken_reference(recipe: Recipe, run: Run) -> Recipe:
    """The recipe, naming the reference that the run has taken from another one, if it has."""
    path = run.reference / "taken.json"
    if recipe.reference.train is None or recipe.reference.train.keep_in is None:
        return recipe
    if not path.exists():
        return recipe
    place = read_json_file(path)["result"]["taken_from"]
    return recipe.model_copy(
        update={"reference": recipe.reference.model_copy(update={"model": place, "train": None})}
    )


def _published_shape(model: str, error: InherituneError) -> ModelDirectory | None:
    """A published model that is not at hand, as headers of its known shape, else None.

    What the Hub does have and what is broken on this machine is for people to hear of.
    """
    absent = isinstance(error, MachineError) or not is_hub_id(model)
    config = known_config(model)
    if config is None or not absent or Path(model).expanduser().exists():
        return None
    shape = imagine(config)
    return None if shape is None else replace(shape, name=f"{model}{_BY_SHAPE}")


def _imagined(wanted: ReferenceTraining) -> ModelDirectory:
    rows = wanted.vocab_size
    if "vocab_size" in wanted.config:
        rows = 0  # the config says it
    elif wanted.tokenizer is not None:
        rows = open_tokenizer(open_model(wanted.tokenizer, whole=False).path).rows
    model = imagine({"vocab_size": rows} | wanted.config)
    if model is None:
        raise UnsupportedModelError(
            f"the size of a {wanted.config['model_type']} that is still to be trained is known to "
            "its class only, which plan does not load.",
            "Plan with a llama, mistral, qwen2, qwen3 or gpt2 whose config names all widths, or "
            "after the reference is trained.",
        )
    return model


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


def _notes_of_shape(model: ModelDirectory) -> list[str]:
    if not model.name.endswith(_BY_SHAPE):
        return []
    name = model.name.removesuffix(_BY_SHAPE)
    return [
        f"{name} is not on this machine: sizes are those of its published shape, its weights "
        "were not looked at, and `run` needs it."
    ]


def _growth_notes(recipe: Recipe, growth: Growth) -> list[str]:
    said, rules = list(growth.notes), recipe.grow
    if rules.abandon == "auto" and len(growth.longest()) > 1:
        end = "and is trained to its end all the same" if rules.audit else "and ends there"
        said.append(
            f"A round that cannot reach the benchmark is known by its fitted curve, {end}; the "
            "last that there can be is never given up. Rounds are counted whole."
        )
    if rules.benchmark is not None:
        known = read_benchmark(Path(rules.benchmark).expanduser())
        said.append(
            f"The benchmark is borrowed: {known.val_loss:.4f} nats, from {rules.benchmark}. What "
            "it was measured on is compared when the text is prepared."
        )
    if len(growth.longest()) == 1:
        grown = [name for name, variant in recipe.variants.items() if variant.start == "grown"]
        said += [f"{name} is not trained: there is one round only." for name in grown]
    return said


def _notes(
    recipe: Recipe,
    trainings: Sequence[PlannedTraining],
    unique: int | None,
    exact: bool,
    memory: Memory,
    speed: Speed | None,
) -> list[str]:
    said = []
    longest = max(training.tokens for training in trainings)
    if unique is None:
        said.append("Epochs are known when the text is: inheritune prepare.")
    elif longest > unique and not recipe.data.allow_repeat:
        said.append(
            f"The text has {'' if exact else 'at most '}{unique:,} tokens and the longest training "
            f"{longest:,}: it will be refused unless data.allow_repeat is true."
        )
    if speed is not None and memory.total > (speed.device.memory_bytes or memory.total):
        said.append(
            f"The estimated memory exceeds that of one {speed.device.title}: lower "
            "train.micro_batch, or choose another device."
        )
    distilled = dict.fromkeys(t.name for t in trainings if t.reference_flops)
    if distilled:
        said.append(
            f"FLOPs include the reference's forward passes for {', '.join(distilled)}: "
            f"{sum(t.reference_flops or 0.0 for t in trainings):.2e} together."
        )
    trained = recipe.reference.train
    if trained is not None and trained.keep_in is not None:
        said.append(
            f"The reference is taken from {trained.keep_in}, at no cost, where another run has "
            "left the same."
        )
    if any(v.tokens == "equal_compute" for v in recipe.variants.values()):
        said.append("A control with equal compute is counted for all rounds.")
    if recipe.inherit.layers == "advice":
        said.append(
            "Counted with half of the layers first; a run begins with as many as the analysis of "
            "the reference's attention advises."
        )
    return said
