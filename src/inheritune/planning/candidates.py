"""What a reference would be with fewer layers: numbers to choose by, from headers and config."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from inheritune.model_files.config import Edit, text_config
from inheritune.model_files.directory import ModelDirectory
from inheritune.model_files.download.partial_file import merged
from inheritune.model_files.flops import first_int
from inheritune.model_files.safetensors import Tensor
from inheritune.model_files.write import split_into_shards
from inheritune.planning.kv_cache import Cache, CacheCost
from inheritune.surgery.cut_points import CutPoint, Pattern, cut_point, find_pattern
from inheritune.surgery.plan import kept_tensors, plan_inherit, stored_dtype
from inheritune.surgery.selection import LayerFacts, choose_layers, describe_selection
from inheritune.surgery.sizes import Counts, Sizes
from inheritune.system.devices import Price, Speed

__all__ = ["Budget", "Candidate", "Detail", "Table", "list_candidates", "look_at"]

_ALL_SHOWN = 12
_LONGEST_DEFAULT = 2048  # tokens per sequence, where nobody says
_POSITIONS = (
    *("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx", "max_target_positions"),
    "seq_length",
)


@dataclass(frozen=True)
class Budget:
    """What training is asked about.

    Attributes:
        seq_len: Tokens per sequence; None: as many as the model has positions, 2048 at most.
        tokens: Training tokens; None: not asked.
        speed: What it runs on; None: not asked.
    """

    seq_len: int | None = None
    tokens: int | None = None
    speed: Speed | None = None


@dataclass(frozen=True)
class Candidate:
    """The reference with some of its layers.

    Attributes:
        cut: Whether it can be cut there, and whether it is better not.
        counts: Parameters, bytes to read and to write, FLOPs per training token.
        download_bytes: Bytes of it that are not on this machine.
        cache: What it keeps per token while it generates.
        training: Of the whole budget; None: no tokens or no device were named.
        is_paper_default: Whether it is half of the layers, with which the method begins.
    """

    cut: CutPoint
    counts: Counts
    download_bytes: int
    cache: CacheCost
    training: Price | None
    is_paper_default: bool

    @property
    def layers(self) -> int:
        """How many."""
        return self.cut.layers


@dataclass(frozen=True)
class Table:
    """A reference and what it would be with fewer layers.

    Attributes:
        reference: Its name.
        revision: The commit it was looked at; None for a directory.
        model_type: As its config says.
        dtype: That most of its weights are stored in.
        layers: How many it has.
        layer_params: Least and most parameters of a layer.
        embedding: Parameters that are looked up.
        pattern: How its layers repeat, in words.
        seq_len: Tokens per sequence that the FLOPs are for.
        budget: What was asked about.
        candidates: By number of layers, ascending; the last one is the whole reference.
        dropped_prediction: Multi-token-prediction tensors that no candidate has.
    """

    reference: str
    revision: str | None
    model_type: str
    dtype: str | None
    layers: int
    layer_params: tuple[int, int]
    embedding: int
    pattern: str
    seq_len: int
    budget: Budget
    candidates: tuple[Candidate, ...]
    dropped_prediction: int

    def as_json(self) -> dict[str, Any]:
        """The table as JSON values."""
        return asdict(self) | {"candidates": [_row(c) for c in self.candidates]}


@dataclass(frozen=True)
class Detail:
    """One candidate from close up.

    Attributes:
        table: The reference, with this candidate alone.
        kept: Layers of the reference, from 0.
        edits: Changed fields of config.json, and why.
        dropped_prediction: Names of the multi-token-prediction tensors that are left out.
        ranges: Ranges of bytes to copy, after neighbours are joined.
        shards: Bytes of each file to write, by its name.
        side_files: Names of the files that are copied as they are.
        needs_class: Whether layers move, so that only the model's class can tell what else must be
            written into the config.
    """

    table: Table
    kept: tuple[int, ...]
    edits: tuple[Edit, ...]
    dropped_prediction: tuple[str, ...]
    ranges: int
    shards: Mapping[str, int]
    side_files: tuple[str, ...]
    needs_class: bool

    @property
    def candidate(self) -> Candidate:
        """The numbers."""
        return self.table.candidates[0]

    def as_json(self) -> dict[str, Any]:
        """Everything as JSON values."""
        own = {key: value for key, value in asdict(self).items() if key != "table"}
        return self.table.as_json() | own


def list_candidates(reference: ModelDirectory, budget: Budget = Budget()) -> Table:
    """Numbers for every number of first layers worth a look.

    All of them up to 12; of more, those at which a pattern ends, thinned, half, and all.

    Args:
        reference: Only its headers and its config are looked at.
        budget: What training is asked about.
    """
    total, sizes = reference.layers, Sizes(reference)
    found = find_pattern(reference, sizes.layers)
    points = [cut_point(reference.config, total, n, found) for n in range(1, total + 1)]
    shown = points if total <= _ALL_SHOWN else _worth_a_look(points)
    return _table(reference, budget, sizes, found, [(tuple(range(p.layers)), p) for p in shown])


def look_at(
    reference: ModelDirectory,
    layers: str,
    budget: Budget = Budget(),
) -> Detail:
    """One candidate in detail: what changes in the config, what is read and written.

    Args:
        reference: Only its headers and its config are looked at.
        layers: A selection, see `selection.choose_layers`.
        budget: What training is asked about.

    Raises:
        RecipeError: There are no such layers; the message says which there are.
        UnsupportedModelError: The config cannot be cut so.
    """
    total, sizes = reference.layers, Sizes(reference)
    kept = choose_layers(layers, LayerFacts(total))
    plan = plan_inherit(reference, kept)
    found = find_pattern(reference, sizes.layers)
    cut = cut_point(reference.config, total, len(kept), found)
    if not plan.is_prefix:
        reason = f"{describe_selection(kept)}: layers move, only `inherit` can tell"
        cut = CutPoint(len(kept), True, None, reason)
    shards = split_into_shards(plan.tensors)
    return Detail(
        table=_table(reference, budget, sizes, found, [(kept, cut)]),
        kept=kept,
        edits=tuple(plan.edits),
        dropped_prediction=tuple(plan.dropped_prediction),
        ranges=_count_ranges([tensor.source for tensor in plan.tensors]),
        shards={name: sum(t.size for t in tensors) for name, tensors in shards.items()},
        side_files=tuple(p.relative_to(reference.path).as_posix() for p in reference.side_files),
        needs_class=not plan.is_prefix,
    )


def _table(
    reference: ModelDirectory,
    budget: Budget,
    sizes: Sizes,
    found: Pattern | None,
    cuts: Sequence[tuple[tuple[int, ...], CutPoint]],
) -> Table:
    section, container = text_config(reference.config), reference.container
    positions = first_int(section, _POSITIONS) or _LONGEST_DEFAULT
    seq_len = budget.seq_len or min(_LONGEST_DEFAULT, positions)
    cache, total = Cache(reference), reference.layers
    params = [layer.params for layer in sizes.layers]
    dropped = [n for n in reference.tensors if not container.keeps(n, total)]
    return Table(
        reference=reference.name,
        revision=reference.revision,
        model_type=str(section.get("model_type") or reference.config.get("model_type")),
        dtype=stored_dtype([*reference.tensors.values()]),
        layers=total,
        layer_params=(min(params), max(params)),
        embedding=sizes.counts(range(total), seq_len).embedding,
        pattern=str(found or "they follow no pattern"),
        seq_len=seq_len,
        budget=replace(budget, seq_len=seq_len),
        candidates=tuple(
            _candidate(reference, budget, sizes.counts(kept, seq_len), cache.cost(kept), kept, cut)
            for kept, cut in cuts
        ),
        dropped_prediction=len(dropped),
    )


def _candidate(
    reference: ModelDirectory,
    budget: Budget,
    counts: Counts,
    cache: CacheCost,
    kept: Sequence[int],
    cut: CutPoint,
) -> Candidate:
    training = None
    if budget.speed is not None and budget.tokens is not None:
        training = budget.speed.price(counts.flops_per_token * budget.tokens)
    is_prefix = kept[-1] == len(kept) - 1
    missing = 0
    if reference.remote is not None:
        missing = reference.missing_bytes(kept_tensors(reference, kept))
    half = is_prefix and len(kept) == max(1, reference.layers // 2)
    return Candidate(cut, counts, missing, cache, training, half)


def _worth_a_look(points: Sequence[CutPoint]) -> list[CutPoint]:
    total = len(points)
    safe = [point.layers for point in points if point.is_safe]
    step = 1
    while len(safe[step - 1 :: step]) > _ALL_SHOWN:
        step *= 2
    shown = {*safe[step - 1 :: step], total // 2, total}
    return [point for point in points if point.layers in shown]


def _count_ranges(tensors: Sequence[Tensor]) -> int:
    by_file = defaultdict(list)
    for tensor in tensors:
        size = tensor.pitch * tensor.shape[0] if tensor.pitch else tensor.size
        by_file[tensor.file].append((tensor.offset, tensor.offset + size))
    return sum(len(merged(ranges)) for ranges in by_file.values())


def _row(candidate: Candidate) -> dict[str, Any]:
    cut = asdict(candidate.cut) | {"safe": candidate.cut.is_safe}
    training = None if candidate.training is None else asdict(candidate.training)
    return {
        **cut,
        **asdict(candidate.counts),
        "download_bytes": candidate.download_bytes,
        "kv_cache": asdict(candidate.cache),
        "training": training,
        "paper_default": candidate.is_paper_default,
    }
