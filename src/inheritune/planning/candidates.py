"""Estimate size, cache and cost of a reference with fewer layers, from its headers and config."""

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
from inheritune.planning.planned_reference import shape_notes
from inheritune.surgery.class_check.ask_class import language_problem
from inheritune.surgery.cut import check_inherit
from inheritune.surgery.cut_points import CutPoint, Pattern, cut_point, find_pattern
from inheritune.surgery.plan import kept_tensors, stored_dtype
from inheritune.surgery.selection import choose_layers, describe_selection, other_engines
from inheritune.surgery.sizes import Counts, Sizes
from inheritune.surgery.ways import LayerFacts
from inheritune.system.devices import Price, Speed
from inheritune.system.rows import Rows

_MAX_ROWS = 12
_MAX_DEFAULT_SEQ_LEN = 2048
# Config keys of the number of positions; the first that a config has counts.
_POSITIONS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "n_ctx",
    "max_target_positions",
    "seq_length",
)


@dataclass(frozen=True)
class Budget:
    """The training to estimate."""

    # Tokens per sequence; None: the model's number of positions, at most 2048.
    seq_len: int | None = None
    tokens: int | None = None  # training tokens; None: no estimate of the training
    speed: Speed | None = None  # devices to train on; None: no estimate of the training


@dataclass(frozen=True)
class Candidate:
    """The reference with some of its layers."""

    cut: CutPoint  # whether the config can be cut there, and whether that is safe
    counts: Counts  # parameters, bytes, and FLOPs per training token
    download_bytes: int  # bytes of the kept tensors that are not on this machine yet
    cache: CacheCost  # size of the key-value cache while generating
    training: Price | None  # time and price of the whole budget; None without tokens or devices
    is_paper_default: bool  # true for half of the layers, where the method starts by default

    @property
    def layers(self) -> int:
        """Number of layers."""
        return self.cut.layers

    def bytes_in_use(self, tokens: int) -> int:
        """Bytes of the weights, and of the cache of one sequence of so many tokens."""
        cache = self.cache
        within = tokens if cache.window is None else min(tokens, cache.window)
        beyond = (tokens - within) * cache.bytes_beyond_window
        return self.counts.bytes + within * cache.bytes_per_token + beyond


@dataclass(frozen=True)
class Candidates(Rows):
    """A reference, and what it would be with fewer layers."""

    reference: str  # name of the model
    revision: str | None  # commit of a Hub model; None for a directory
    model_type: str  # as in config.json
    dtype: str | None  # dtype of most weights, by bytes
    layers: int
    layer_params: tuple[int, int]  # fewest and most parameters of a layer
    embedding: int  # parameters of the embeddings, which are looked up rather than multiplied
    pattern: str  # how the layers repeat, in words
    seq_len: int  # tokens per sequence that the FLOPs are for
    budget: Budget  # the training that was estimated
    # By number of layers, ascending; the last one is the whole reference.
    candidates: tuple[Candidate, ...]
    dropped_prediction: int  # number of multi-token-prediction tensors, which no candidate keeps
    notes: tuple[str, ...]  # what to know about the reference; empty if its weights are here
    # Why it is not trained or measured here, whatever the cut; None: it is a language model.
    problem: str | None

    @property
    def proposed(self) -> Candidate:
        """The safe cut that is nearest to half of the layers, where the method starts."""
        half = max(1, self.layers // 2)
        safe = [c for c in self.candidates if c.cut.is_safe and c.layers < self.layers]
        return min(safe or self.candidates, key=lambda c: (abs(c.layers - half), -c.layers))

    def as_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return asdict(self) | {"candidates": self.rows()}

    def rows(self) -> list[dict[str, Any]]:
        """Return one mapping for each candidate."""
        return [_row(candidate) for candidate in self.candidates]


@dataclass(frozen=True)
class CutPlan(Rows):
    """One cut of a reference in detail: what changes in the config, what is read and written."""

    table: Candidates  # the reference, with this candidate alone
    kept: tuple[int, ...]  # layers of the reference, from 0
    edits: tuple[Edit, ...]  # changed fields of config.json, and why
    # Names of the multi-token-prediction tensors that are left out.
    dropped_prediction: tuple[str, ...]
    ranges: int  # number of byte ranges to copy, after neighbours are joined
    shards: Mapping[str, int]  # size in bytes of each file to write, by its name
    side_files: tuple[str, ...]  # names of the files that are copied unchanged
    left_behind: tuple[str, ...]  # names of files and folders of the reference that are not
    check: str  # what the model's class says of the cut, in words
    by_number: str  # what engines make of it that count layers by number; empty: the same
    goal: str | None = None  # the goal that led to this number of layers, in words

    @property
    def candidate(self) -> Candidate:
        """The estimates for this cut."""
        return self.table.candidates[0]

    def as_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        details = {key: value for key, value in asdict(self).items() if key != "table"}
        return self.table.as_json() | details

    def rows(self) -> list[dict[str, Any]]:
        """Return the one row of the table."""
        return self.table.rows()


def list_candidates(reference: ModelDirectory, budget: Budget = Budget()) -> Candidates:
    """Estimate the reference with its first n layers, for every n worth considering.

    Up to 12 layers, that is every n. Of more, it is those at which a pattern of layers ends,
    thinned out, and half and all of the layers. Only headers and config of the reference are read.
    """
    table = every_candidate(reference, budget)
    if table.layers <= _MAX_ROWS:
        return table
    shown = _worth_considering(table)
    return replace(table, candidates=tuple(c for c in table.candidates if c.layers in shown))


def every_candidate(reference: ModelDirectory, budget: Budget = Budget()) -> Candidates:
    """Estimate the reference with its first n layers, for every n from 1 to all."""
    total, sizes = reference.layers, Sizes(reference)
    pattern = find_pattern(reference, sizes.layers)
    points = [cut_point(reference.config, total, n, pattern) for n in range(1, total + 1)]
    cuts = [(tuple(range(point.layers)), point) for point in points]
    return _estimate(reference, budget, sizes, pattern, cuts)


def plan_cut(reference: ModelDirectory, layers: str, budget: Budget = Budget()) -> CutPlan:
    """Plan one cut: changes of the config, bytes to read, files to write.

    The model's class is asked, as by `inherit`.

    Raises:
        RecipeError: The reference has no such layers.
        SourceError: The config cannot be cut there, or the class refuses the cut.
    """
    total, sizes = reference.layers, Sizes(reference)
    kept = choose_layers(layers, LayerFacts(total))
    check, plan = check_inherit(reference, kept)
    pattern = find_pattern(reference, sizes.layers)
    cut = cut_point(reference.config, total, len(kept), pattern)
    if not plan.is_prefix:
        reason = f"{describe_selection(kept)}: every layer computes what it did"
        cut = CutPoint(len(kept), True, None, reason)
    shards = split_into_shards(plan.tensors)
    return CutPlan(
        table=_estimate(reference, budget, sizes, pattern, [(kept, cut)]),
        kept=kept,
        edits=tuple(plan.edits),
        dropped_prediction=tuple(plan.dropped_prediction),
        ranges=_count_ranges([tensor.source for tensor in plan.tensors]),
        shards={name: sum(t.size for t in tensors) for name, tensors in shards.items()},
        side_files=tuple(p.relative_to(reference.path).as_posix() for p in reference.side_files),
        left_behind=tuple(reference.left_behind),
        check=check.summary,
        by_number=other_engines(plan.by_number),
    )


def _estimate(
    reference: ModelDirectory,
    budget: Budget,
    sizes: Sizes,
    pattern: Pattern | None,
    cuts: Sequence[tuple[tuple[int, ...], CutPoint]],
) -> Candidates:
    section, container = text_config(reference.config), reference.container
    positions = first_int(section, _POSITIONS) or _MAX_DEFAULT_SEQ_LEN
    seq_len = budget.seq_len or min(_MAX_DEFAULT_SEQ_LEN, positions)
    cache, total = Cache(reference), reference.layers
    params = [layer.params for layer in sizes.layers]
    dropped = [name for name in reference.tensors if not container.keeps(name, range(total))]
    return Candidates(
        reference=reference.name,
        revision=reference.revision,
        model_type=str(section.get("model_type") or reference.config.get("model_type")),
        dtype=stored_dtype([*reference.tensors.values()]),
        layers=total,
        layer_params=(min(params), max(params)),
        embedding=sizes.counts(range(total), seq_len).embedding,
        pattern=str(pattern or "they follow no pattern"),
        seq_len=seq_len,
        budget=replace(budget, seq_len=seq_len),
        candidates=tuple(
            _candidate(reference, budget, sizes.counts(kept, seq_len), cache.cost(kept), kept, cut)
            for kept, cut in cuts
        ),
        dropped_prediction=len(dropped),
        notes=tuple(shape_notes(reference)),
        problem=language_problem(reference) or None,
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
    download_bytes = 0
    if reference.remote is not None:
        download_bytes = reference.missing_bytes(kept_tensors(reference, kept))
    half = max(1, reference.layers // 2)
    is_paper_default = list(kept) == list(range(half))
    return Candidate(cut, counts, download_bytes, cache, training, is_paper_default)


def _worth_considering(table: Candidates) -> set[int]:
    total = table.layers
    safe = [candidate.layers for candidate in table.candidates if candidate.cut.is_safe]
    step = 1
    while len(safe[step - 1 :: step]) > _MAX_ROWS:
        step *= 2
    return {*safe[step - 1 :: step], table.proposed.layers, total // 2, total}


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
