"""Estimate a training on many devices: bytes between them, checkpoints, failures; hours and money.

`Traffic` is what several gloo processes exchange, to the byte where rows divide. Speeds of links,
failures, and how far the computation hides the network are a projection.

B bytes of the weights that are gathered, R of the fp32 gradients; a copy of the weights lies on S
processes, and there are C copies.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Self

from inheritune.data.shards import id_type
from inheritune.errors import RecipeError, escape
from inheritune.model_files.training_memory import SAVED_BYTES_PER_S, Layout, Memory, TrainedModel
from inheritune.planning.fitting import (
    DEVICES_PER_MACHINE,
    can_share,
    cheapest_change,
    divided_by,
    layout_on,
    precision_on,
    room_on,
    shared_by,
)
from inheritune.planning.trainings import PlannedTraining
from inheritune.recipe.training import Train
from inheritune.steps.limits import checkpoint_bytes
from inheritune.system.devices import Speed

RECOMPUTED = 4 / 3  # work of a step in which layers are computed again, as a multiple
RESTART_S = 600.0  # from a failure until the next step: a new machine, loading, compiling


@dataclass(frozen=True)
class Links:
    """What connects the devices, and how often one of them fails."""

    # Bytes per second and device, in one direction: inside a machine, as its maker states it; and
    # between machines, 400 Gbit/s for each device, of which 80 % are reached.
    in_machine: float = 300e9
    network: float = 40e9
    storage: float = 10e9  # bytes per second of shared storage, for all devices together
    # Hours between failures of one device. Meta, The Llama 3 Herd of Models, arXiv 2407.21783,
    # table 5: 419 unplanned interruptions in 54 days of 16,384 H100.
    mtbf_hours: float = 50_000.0


USUAL_LINKS = Links()


def links_of(speed: Speed | None, mtbf: float | None, network: float | None) -> Links:
    """Return the links of some devices, with what the user knows of them.

    Raises:
        RecipeError: A value is not above 0.
    """
    for name, value in {"mtbf": mtbf, "network": network}.items():
        if value is not None and not 0 < value < float("inf"):
            raise RecipeError(f"--{name} is {value}.", "Name a number above 0.")
    links = USUAL_LINKS
    if speed is not None and speed.device.link is not None:
        links = replace(links, in_machine=speed.device.link)
    known = {"mtbf_hours": mtbf, "network": network}
    return replace(links, **{key: value for key, value in known.items() if value is not None})


def device_counts(devices: int | str) -> tuple[int, ...]:
    """Read a number of devices, or a range such as ``8..1024``, which doubles.

    Raises:
        RecipeError: It is neither.
    """
    match = re.fullmatch(r"([1-9][0-9]{0,6})(?:\.\.([1-9][0-9]{0,6}))?", str(devices))
    if match is None or int(match[2] or match[1]) < int(match[1]):
        raise RecipeError(
            f"--devices is {escape(repr(devices), 40)}.", "Name a number, or a range: 8..1024"
        )
    first, last = int(match[1]), int(match[2] or match[1])
    counts = [first]
    while 2 * counts[-1] <= last:
        counts.append(2 * counts[-1])
    return tuple(counts)


@dataclass(frozen=True)
class Traffic:
    """Bytes that each process receives in a step."""

    gathered: float  # weights of the target, in the forward and in the backward pass
    reduced: float  # fp32 gradients that are added up within a copy
    exchanged: float  # fp32 gradients that copies add up
    reference: float  # weights of the reference, in its forward pass

    @property
    def total(self) -> float:
        """Sum of all parts."""
        return self.gathered + self.reduced + self.exchanged + self.reference

    @classmethod
    def of(cls, model: TrainedModel, layout: Layout, copies: int, item: int) -> Self:
        """Count the bytes of a step.

        Layers are gathered in both passes of every micro-batch, all else in the forward pass alone,
        since it is kept: item x (2 layers + rest) x (S - 1) / S. A ring hands over each byte of a
        sum once, R (S - 1) / S; copies send it on twice, 2 (C - 1) / C x R / S.

        Args:
            item: Bytes of a weight that is gathered: 2 in bf16 on GPUs, else 4.
        """
        shards, passes = layout.shards, layout.micro_batches
        foreign = (shards - 1) / shards
        weights = item * (model.params + model.in_layers) * passes
        sums = 4 * model.trained * (passes if layout.sums_every_pass else 1)
        # The head of the reference is gathered again, for the walk over the tokens.
        reference = item * (model.reference + bool(model.reference) * model.head) * passes
        return cls(
            gathered=weights * foreign,
            reduced=sums * foreign,
            exchanged=2 * (copies - 1) / copies * sums / shards,
            reference=reference * foreign,
        )


@dataclass(frozen=True)
class ClusterPlan:
    """All trainings of a run on a number of devices."""

    devices: int
    shards: int  # devices that share one copy of the weights, in the largest training
    micro_batch: int  # sequences of a forward pass, the fewest of all trainings
    recomputes: bool  # whether layers are computed again in a training's backward pass
    memory: Memory  # on one device, for the training that needs the most, with `change`
    fits: bool  # as the recipe is; a batch that the devices cannot divide does not
    # The cheapest change with which it does; empty: it fits, or nothing helps. Where it needs no
    # other number of devices, all figures are with it.
    change: str
    hours: float
    device_hours: float
    dollars: float | None  # None without a rate
    waiting: float  # share of the hours in which devices wait for the network
    lost: float  # share of the hours for checkpoints, failures and restarts
    save_s: float  # seconds of one checkpoint of the largest training
    best_save_minutes: float  # between checkpoints, with which the least is lost
    text_bytes_per_s: float  # of token shards, by all devices together


@dataclass(frozen=True)
class ChangedRun:
    """The cheapest change with which a run fits, and the run with it."""

    text: str  # keys and values, such as "train.micro_batch 2"
    plan: ClusterPlan


def network_seconds(traffic: Traffic, layout: Layout, devices: int, links: Links) -> float:
    """Return the seconds that a step's bytes take; copies on other machines use the network."""
    inside = traffic.gathered + traffic.reduced + traffic.reference
    rate = links.in_machine if layout.shards <= DEVICES_PER_MACHINE else links.network
    beyond = links.in_machine if devices <= DEVICES_PER_MACHINE else links.network
    return inside / rate + traffic.exchanged / beyond


def save_seconds(save_bytes: int, shards: int, links: Links) -> float:
    """Return the seconds of one checkpoint: each shard writes its part, as fast as it can."""
    return save_bytes / min(shards * SAVED_BYTES_PER_S, links.storage)


def lost_share(devices: int, save_s: float, interval_s: float, links: Links) -> float:
    """Return the share of time for saving, and for what failures undo.

    A failure, devices / MTBF times an hour, costs half of the interval between checkpoints and a
    restart.
    """
    failures_per_s = devices / (links.mtbf_hours * 3600)
    saving = save_s / (interval_s + save_s)
    undone = failures_per_s * ((interval_s + save_s) / 2 + RESTART_S)
    return min(1.0, saving + undone)


def best_interval(devices: int, save_s: float, links: Links) -> float:
    """Return the seconds between checkpoints that lose the least: sqrt(2 x save x MTBF).

    Source: Young, A first order approximation to the optimum checkpoint interval, CACM 1974.
    """
    return float((2 * save_s * links.mtbf_hours * 3600 / devices) ** 0.5)


def plan_cluster(
    train: Train,
    speed: Speed,
    planned: Sequence[tuple[PlannedTraining, TrainedModel]],
    memory_on: Callable[[Train, int], Memory],
    links: Links,
) -> ClusterPlan:
    """Estimate all trainings of a run on a number of devices, with a change if they need one.

    Gathering goes on beside the computation: a step takes as long as the slower of the two.
    """
    devices, room = speed.count, room_on(speed)
    fits = train.micro_batch in divided_by(train, devices) and can_share(train, devices)
    train = shared_by(train, devices)
    fits = fits and (room is None or memory_on(train, devices).total <= room)
    change = None if fits or room is None else cheapest_change(train, devices, room, memory_on)
    if change is not None and change.devices == devices:
        train = change.train
    item = 2 if precision_on(train, speed) == "bf16" else 4
    interval_s = 60 * train.save_minutes
    hours = waiting = lost = save_s = 0.0
    layouts = [layout_on(model, train, speed) for _, model in planned]
    for layout, (training, model) in zip(layouts, planned, strict=True):
        traffic = Traffic.of(model, layout, devices // layout.shards, item)
        computing_s = 3600 * speed.price(training.flops).hours
        computing_s *= RECOMPUTED if layout.recomputes else 1
        network_s = training.steps * network_seconds(traffic, layout, devices, links)
        saved = checkpoint_bytes(training.params, training.trained_params)
        save_s = max(save_s, save_seconds(saved, layout.shards, links))
        busy_s = max(computing_s, network_s)
        share = lost_share(devices, save_s, interval_s, links)
        total = busy_s / max(1 - share, 1e-3)
        hours += total / 3600
        waiting += (busy_s - computing_s) / 3600
        lost += (total - busy_s) / 3600
    tokens = sum(training.tokens for training, _ in planned)
    vocabulary = planned[0][1].vocabulary
    return ClusterPlan(
        devices=devices,
        shards=max(layout.shards for layout in layouts),
        micro_batch=min(layout.micro_batch for layout in layouts),
        recomputes=any(layout.recomputes for layout in layouts),
        memory=memory_on(train, devices),
        fits=fits,
        change="" if change is None else change.text,
        hours=hours,
        device_hours=hours * devices,
        dollars=None if speed.rate is None else hours * devices * speed.rate,
        waiting=waiting / hours,
        lost=lost / hours,
        save_s=save_s,
        best_save_minutes=best_interval(devices, save_s, links) / 60,
        text_bytes_per_s=tokens * id_type(vocabulary).itemsize / (hours * 3600),
    )
