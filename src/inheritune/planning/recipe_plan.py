"""What carrying out a recipe would take, told without doing any of it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from inheritune.checkpoints.config import Edit, cut_config, text_config
from inheritune.checkpoints.flops import first_int
from inheritune.checkpoints.source import ModelDirectory, open_model
from inheritune.data.shards import id_type
from inheritune.data.tokenizer import open_tokenizer
from inheritune.data.tokens import open_tokens
from inheritune.derive import first_layers
from inheritune.errors import UnsupportedModelError
from inheritune.inherit.devices import Price, Speed
from inheritune.inherit.imagined import imagine
from inheritune.inherit.sizes import Sizes
from inheritune.planning.memory import (
    Memory,
    checkpoint_bytes,
    estimate_memory,
    weights_bytes,
)
from inheritune.planning.trainings import PlannedTraining, Planner
from inheritune.recipe import Recipe, ReferenceTraining
from inheritune.run import Run
from inheritune.steps.borrowed import read_benchmark
from inheritune.steps.growth import Growth
from inheritune.steps.pinned import open_pinned, pinned_commit
from inheritune.steps.reference import Reference
from inheritune.steps.starts import check_starts

__all__ = ["RecipePlan", "plan_recipe"]


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
    notes: tuple[str, ...]

    @property
    def flops(self) -> float:
        """Of all trainings."""
        return sum(training.flops for training in self.trainings)

    @property
    def price(self) -> Price | None:
        """Of all trainings, without validation and loading."""
        return None if self.speed is None else self.speed.price(self.flops)

    def as_json(self) -> dict[str, Any]:
        """The plan as JSON values."""
        price = None if self.price is None else asdict(self.price)
        memory = asdict(self.memory) | {"total": self.memory.total}
        own = {"run": str(self.run), "flops": self.flops, "price": price, "memory": memory}
        return asdict(self) | own


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
        notes=(
            *_growth_notes(recipe, growth),
            *_notes(recipe, trainings, unique, exact, memory, speed),
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
    found = open_model(wanted.model, wanted.revision, whole=False)
    if found.revision is None:
        return found
    run = Run.create(run.root)
    with run.lock():  # of `plan` and `run`, one decides
        return open_pinned(run, wanted.model, wanted.revision, whole=False)


def _imagined(wanted: ReferenceTraining) -> ModelDirectory:
    rows = wanted.vocab_size
    if wanted.tokenizer is not None:
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
    stored: Mapping[tuple[int, float], int],
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


def _logits_bytes(stored: Mapping[tuple[int, float], int], rows: int) -> int:
    """What variants keep of the reference's predictions: ids, fp16, and an fp32 for the rest."""
    each = id_type(rows).itemsize + 2
    return sum(tokens * (top_k * each + 4) for (top_k, _), tokens in stored.items())


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
    if any(v.tokens == "equal_compute" for v in recipe.variants.values()):
        said.append("A control with equal compute is counted for all rounds.")
    return said
