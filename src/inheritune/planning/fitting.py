"""Find the layout of a training on its devices, and the cheapest change that lets it fit."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from inheritune.model_files.training_memory import (
    CHUNK_LOGITS,
    Layout,
    Memory,
    TrainedModel,
    estimate_memory,
    first_that_fits,
    room_in,
)
from inheritune.planning.trainings import PlannedTraining
from inheritune.recipe.sharding import (
    MOST_ON_A_CPU,
    bytes_at_rest,
    micro_batch_choices,
    micro_batches,
    shard_count,
    sums_every_pass,
)
from inheritune.recipe.training import Train
from inheritune.reporting.quantities import counted, data_size
from inheritune.surgery.sizes import Sizes
from inheritune.system.devices import Speed

DEVICES_PER_MACHINE = 8  # assumed of more devices than these
_LONGEST_MATMUL = 512  # as in training.kernels, on a CPU
_MOST_DEVICES = 1024


@dataclass(frozen=True)
class Change:
    """A change of recipe or devices with which a training fits."""

    text: str  # keys and values, such as "train.micro_batch 2"
    train: Train
    devices: int


def room_on(speed: Speed | None) -> int | None:
    """Return the bytes of one of the devices that a training can take; None: not known."""
    return None if speed is None else room_in(speed.device.memory_bytes)


def machines_of(devices: int) -> int:
    """Return the machines that so many devices are in."""
    return -(-devices // DEVICES_PER_MACHINE)


def can_share(train: Train, devices: int) -> bool:
    """Return whether so many devices can be divided by ``train.shard_size``."""
    return train.shard_size is None or devices % train.shard_size == 0


def shared_by(train: Train, devices: int) -> Train:
    """Return the section with the shards of a machine where its own do not divide the devices."""
    return train if can_share(train, devices) else train.model_copy(update={"shard_size": None})


def layout_on(model: TrainedModel, train: Train, speed: Speed | None) -> Layout:
    """Lay a training out as a run on these devices would."""
    precision = precision_on(train, speed)
    at_rest = bytes_at_rest(model.params, model.trained, model.reference, precision)
    devices = 1 if speed is None else speed.count
    on_cpu = speed is None or speed.device.name == "cpu"
    memory = None if speed is None else speed.device.memory_bytes
    # Without named devices, one alone is laid out, whatever the recipe asks of several.
    shards = 1
    if speed is not None:
        shards = shard_count(train, devices, machines_of(devices), at_rest, memory)
    is_short = on_cpu and train.seq_len <= _LONGEST_MATMUL
    base = Layout(
        shards=shards,
        sums_every_pass=sums_every_pass(model.trained, shards, memory),
        offloads=train.offload == "on" and devices > 1,
        matmul_attention=train.attention == "matmul" or (train.attention == "auto" and is_short),
        loss="op",
    )
    most = MOST_ON_A_CPU if on_cpu else None
    sizes = micro_batch_choices(train, devices, most)
    layouts = [_with_passes(base, n, train, devices) for n in sizes]
    room = None if on_cpu else room_on(speed)
    recomputing = train.activation_checkpointing
    layout = first_that_fits(layouts, recomputing, model, train.seq_len, precision, room)
    if not on_cpu:
        return layout
    logits = layout.micro_batch * train.seq_len * model.vocabulary
    return replace(layout, loss="chunks" if logits > CHUNK_LOGITS else "logits")


def _with_passes(layout: Layout, micro_batch: int, train: Train, devices: int) -> Layout:
    passes = max(1, train.batch_tokens // (train.seq_len * micro_batch * devices))
    return replace(layout, micro_batch=micro_batch, micro_batches=passes)


def micro_batch_note(
    train: Train, planned: Sequence[tuple[PlannedTraining, TrainedModel]], speed: Speed | None
) -> str | None:
    """Say which micro-batch `auto` comes to, and what keeps it from a larger one."""
    devices, room = 1 if speed is None else speed.count, room_on(speed)
    if train.micro_batch != "auto" or not micro_batches(train, devices):
        return None
    parts: dict[str, None] = {}
    for training, model in planned:
        layout = layout_on(model, train, speed)
        larger = [n for n in micro_batches(train, devices) if n > layout.micro_batch]
        words = f"{counted(layout.micro_batch, 'sequence')} for {training.name}, "
        words += counted(training.layers, "layer") + ", recomputed" * layout.recomputes
        if room is None:
            words += f" (at most {MOST_ON_A_CPU} on a CPU; for a GPU: --device)"
        elif larger:
            wide = _with_passes(layout, larger[-1], train, devices)
            memory = estimate_memory(model, wide, train.seq_len, precision_on(train, speed))
            words += f" ({larger[-1]} would take {data_size(memory.total)} of {data_size(room)})"
        parts[words] = None
    return f"train.micro_batch, auto: {'; '.join(parts)}."


def precision_on(train: Train, speed: Speed | None) -> str:
    """Return the precision that `auto` comes to on some devices."""
    if train.precision != "auto":
        return train.precision
    return "fp32" if speed is None else speed.device.precision


def trained_model(sizes: Sizes, training: PlannedTraining, reference: int) -> TrainedModel:
    """Describe the model of a training; ``reference`` are the parameters of the reference."""
    outside = reference - sum(layer.params for layer in sizes.layers)
    return TrainedModel(
        config=sizes.reference.config,
        params=training.params,
        in_layers=max(0, training.params - outside),
        layers=training.layers,
        tied=sizes.ties_head,
        trained=training.trained_params,
        lowest_trained_layer=training.lowest_trained_layer,
        reference=reference if training.beside else 0,
        reference_layers=sizes.reference.layers,
        compares_hidden=training.compares_hidden,
    )


def memory_of(model: TrainedModel, train: Train, speed: Speed | None) -> Memory:
    """Estimate the memory of a training on one of some devices."""
    precision = precision_on(train, speed)
    return estimate_memory(model, layout_on(model, train, speed), train.seq_len, precision)


def cheapest_change(
    train: Train, devices: int, room: int, estimate: Callable[[Train, int], Memory]
) -> Change | None:
    """Return the first change with which a training fits, by what it costs; None: none does.

    Smaller micro-batches cost next to nothing, recomputing a third more work. More devices take as
    many device-hours, as long as their links keep up; offloading is slower than all of these.

    Args:
        room: Bytes of one device.
        estimate: Gives the memory on one of a number of devices.
    """
    for changed, count in _changes(train, devices):
        if estimate(changed, count).total <= room:
            return Change(_text(train, changed, devices, count), changed, count)
    return None


def _changes(train: Train, devices: int) -> Iterator[tuple[Train, int]]:
    for recomputes in ("off", "on"):
        for size in divided_by(train, devices):
            yield _with(train, size, recomputes), devices
    count = devices * 2
    while count <= _MOST_DEVICES:
        if sizes := divided_by(train, count):
            for recomputes in ("off", "on"):
                yield _with(train, sizes[0], recomputes), count
                yield _with(train, sizes[-1], recomputes), count
        if count == 8 * devices and devices > 1 and (sizes := divided_by(train, devices)):
            yield _with(train, sizes[-1], "on", "on"), devices
        count *= 2


def divided_by(train: Train, devices: int) -> list[int | Literal["auto"]]:
    """Micro-batches that divide a device's share of a step, from the recipe's downwards."""
    if train.micro_batch == "auto":
        return ["auto"] if micro_batches(train, devices) else []
    return [*micro_batches(train, devices, train.micro_batch)]


def _with(
    train: Train, micro_batch: int | str, recomputes: str, offload: str | None = None
) -> Train:
    if train.activation_checkpointing != "off":
        recomputes = train.activation_checkpointing
    update = {"micro_batch": micro_batch, "activation_checkpointing": recomputes}
    return train.model_copy(update=update | {"offload": offload or train.offload})


def _text(train: Train, changed: Train, devices: int, count: int) -> str:
    keys = ("micro_batch", "activation_checkpointing", "offload")
    parts = [
        f"train.{key} {value}"
        for key in keys
        if (value := getattr(changed, key)) != getattr(train, key)
    ]
    if count != devices:
        parts = [f"{count} devices", *parts]
    return ", ".join(parts)
