"""Measure a family: every size between a trained target and its reference, with no training.

family.json keeps what was measured, so that no size is measured twice.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inheritune.errors import DataError, SourceError, escape
from inheritune.model_files.directory import ModelDirectory
from inheritune.model_files.layers import ranges
from inheritune.run_record.fields import finite_number
from inheritune.surgery.grow import patch
from inheritune.surgery.removal import Cut
from inheritune.system.files import write_json
from inheritune.system.rows import Rows
from inheritune.system.strict_json import read_json

if TYPE_CHECKING:
    from inheritune.evaluation.fidelity import Fidelity
    from inheritune.evaluation.val_loss import ValLoss

_FORMAT = 1
CLOSENESS = ("kl", "kl_se", "top1", "overlap")  # fields of a member that a fidelity gives


@dataclass(frozen=True)
class Member:
    """One size of a family.

    Attributes:
        layers: Number of layers.
        layer_map: Layers of the reference that it has.
        returned: Those that the target lacks; they come from the reference, untrained.
        params: Parameters; tied ones once.
        val_loss: Nats per token.
        val_loss_se: Its standard error over windows; None for a single one.
        windows: Loss of every window, nats per token.
        kl: KL(reference || member), nats per token; None: not measured.
        kl_se: Its standard error.
        top1: Share of tokens at which both think the same token the likeliest.
        overlap: Sum of min(p, q), in [0, 1].
        task_loss: By how much its tasks lie below the reference's, in the mean; None: not asked.
        seconds: Wall-clock time of the measurement.
    """

    layers: int
    layer_map: Cut
    returned: Cut
    params: int
    val_loss: float
    val_loss_se: float | None
    windows: list[float]
    kl: float | None = None
    kl_se: float | None = None
    top1: float | None = None
    overlap: float | None = None
    task_loss: float | None = None
    seconds: float = 0.0

    @property
    def listed(self) -> str:
        """The layers that came back, in words."""
        return ", ".join(ranges(self.returned))

    def row(self) -> dict[str, Any]:
        """Everything but the windows."""
        fields = asdict(self) | {"layer_map": [*self.layer_map], "returned": [*self.returned]}
        del fields["windows"]
        return fields


@dataclass(frozen=True)
class Family(Rows):
    """The target and every larger size that needs no training.

    Attributes:
        reference: Name of the reference.
        reference_layers: Its layers.
        reference_loss: Its loss on the same windows, nats per token.
        source: The text, in words.
        members: The target first, then one layer more each.
    """

    reference: str
    reference_layers: int
    reference_loss: float
    source: str
    members: tuple[Member, ...]

    def rows(self) -> list[dict[str, Any]]:
        """A row for each size."""
        return [member.row() for member in self.members]

    def as_json(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self) | {"members": self.rows()}


@dataclass(frozen=True)
class Measured:
    """What was measured of one model."""

    loss: "ValLoss"
    params: int
    seconds: float
    fidelity: "Fidelity | None" = None


def measure_family(
    target: ModelDirectory,
    reference: ModelDirectory,
    maps: Sequence[Cut],
    measure: Callable[[Path, Cut], Measured],
    known: Mapping[Cut, Member],
    keep: Callable[[Sequence[Member]], None],
    scratch: Path,
) -> list[Member]:
    """Write each size, measure it, and remove it again.

    Args:
        maps: Layers of the reference that each size has; those of the target first.
        measure: Called with the directory of a size.
        known: Sizes that were measured before.
        keep: Called with all sizes so far after each measurement.
        scratch: Where a size lies while it is measured.
    """
    own, members = maps[0], list[Member]()
    for layer_map in maps:
        if (member := known.get(layer_map)) is None:
            directory = target.path
            if layer_map != own:
                shutil.rmtree(scratch, ignore_errors=True)
                directory = patch(target, reference, layer_map, scratch, own).path
            member = _member(layer_map, own, measure(directory, layer_map))
            members.append(member)
            keep(members)
        else:
            members.append(member)
    shutil.rmtree(scratch, ignore_errors=True)
    return members


def _member(layer_map: Cut, own: Cut, measured: Measured) -> Member:
    fidelity = {} if measured.fidelity is None else asdict(measured.fidelity)
    return Member(
        layers=len(layer_map),
        layer_map=layer_map,
        returned=tuple(layer for layer in layer_map if layer not in own),
        params=measured.params,
        val_loss=measured.loss.mean,
        val_loss_se=finite_number(measured.loss.se),
        windows=measured.loss.per_window.tolist(),
        seconds=round(measured.seconds, 1),
        **{key: fidelity.get(key) for key in CLOSENESS},
    )


# --- family.json ---


def stored_members(path: Path, inputs: Mapping[str, Any]) -> dict[Cut, Member]:
    """Read the sizes that were measured from the same inputs; none where the file is broken."""
    with suppress(DataError, KeyError, TypeError, ValueError):
        for family in read_json(path)["families"]:
            if family["inputs"] == inputs:
                members = [_read_member(row) for row in family["members"]]
                return {member.layer_map: member for member in members}
    return {}


def keep_members(path: Path, inputs: Mapping[str, Any], members: Sequence[Member]) -> None:
    """Write the sizes of a target to family.json, in place of others of the same target."""
    others: list[Any] = []
    with suppress(DataError, KeyError, TypeError):
        families = read_json(path)["families"]
        others = [f for f in families if f["inputs"]["target"] != inputs["target"]]
    own = {"inputs": dict(inputs), "members": [m.row() | {"windows": m.windows} for m in members]}
    write_json(path, {"format": _FORMAT, "families": [*others, own]})


def holds_families(path: Path) -> bool:
    """Whether a file was written by `keep_members`."""
    with suppress(DataError, KeyError, TypeError):
        stored = read_json(path)
        return bool(stored["format"] == _FORMAT and isinstance(stored["families"], list))
    return False


def layers_of_member(
    path: Path, target: ModelDirectory, reference: ModelDirectory, layers: int
) -> Cut:
    """Return the layer map of one size in a file.

    Raises:
        DataError: The file is missing, or no family.json.
        SourceError: It was measured of another target, or with another reference.
    """
    if not holds_families(path):
        raise DataError(
            f"{escape(path)} is missing or no family.json.", "Leave --family out, or write one."
        )
    digests = target.digest, reference.digest
    sizes: dict[int, Cut] = {}
    for family in read_json(path)["families"]:
        if (family["inputs"]["target"], family["inputs"]["reference"]) == digests:
            sizes = {row["layers"]: tuple(row["layer_map"]) for row in family["members"]}
    if not sizes:
        raise SourceError(
            f"{escape(path)} was measured of another model than {target.name} with "
            f"{reference.name}: one of the two has changed since, and its sizes no longer fit.",
            "Leave --family out, or measure again.",
        )
    if layers not in sizes:
        raise SourceError(
            f"{escape(path)} has no size of {layers} layers.",
            f"Choose one of {', '.join(map(str, sorted(sizes)))}.",
        )
    return sizes[layers]


def _read_member(row: Mapping[str, Any]) -> Member:
    fields = dict(row)
    fields["layer_map"], fields["returned"] = tuple(row["layer_map"]), tuple(row["returned"])
    return Member(**fields)
