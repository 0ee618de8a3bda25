"""Put layers of a reference back into a trained target, chosen and measured on a text."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from inheritune.data.calibration import text_ids
from inheritune.data.sources import describe_text
from inheritune.data.text_stream import IdStream
from inheritune.data.tokenizer import open_tokenizer
from inheritune.errors import DataError, RecipeError, escape
from inheritune.evaluation.family import (
    Family,
    Measured,
    Member,
    holds_families,
    keep_members,
    layers_of_member,
    measure_family,
    stored_members,
)
from inheritune.model_files.config import max_positions
from inheritune.model_files.directory import ModelDirectory
from inheritune.model_files.layers import ranges
from inheritune.recipe.data import Data
from inheritune.surgery.grow import patch
from inheritune.surgery.origin import as_cut_from, layer_map_of, refuse_other_reference
from inheritune.surgery.removal import Cut, give_back, without
from inheritune.surgery.selection import check_selection, choose_layers, way_of
from inheritune.surgery.ways import LayerFacts
from inheritune.system.files import scratch_directory, write_errors
from inheritune.system.progress import Listener, silent
from inheritune.system.signals import StopFlag, catch_signals

TargetLayers = int | str | Sequence[int] | None
_BATCH = 8  # windows in a forward


@dataclass(frozen=True)
class PatchText:
    """A text, and how much of it layers are chosen by and sizes are measured on."""

    data: Data  # never text that results are told of
    windows: int  # for each of the two
    tokens_per_window: int
    seed: int  # of the choice of windows that layers are chosen by

    @property
    def source(self) -> str:
        """The text in words."""
        return describe_text(self.data)

    def as_json(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "source": self.source,
            "windows": self.windows,
            "tokens_per_window": self.tokens_per_window,
            "seed": self.seed,
        }


def patch_layers(
    target: ModelDirectory,
    reference: ModelDirectory,
    layers: int | str | Sequence[int],
    out: Path,
    text: PatchText,
    family: Path | None = None,
    on_progress: Listener = silent,
    target_layers: TargetLayers = None,
) -> ModelDirectory:
    """Write a target with some of its reference's layers put back, untrained.

    Args:
        layers: Number of layers of the patched model, whose layers then come back in the order of
            their scores; or the layers of the reference to put back, ascending, or as ``"3,5-7"``.
        text: Text to score on.
        family: family.json that has the order already; None: the text decides.
        target_layers: Layers of the reference that the target has; None: as its record says.

    Raises:
        RecipeError: The target has such a layer already, or the reference has none.
        SourceError: The target was cut from another reference, or the family is of others.
    """
    reference = as_cut_from(target, reference)
    refuse_other_reference(target, reference)
    own = layer_map_of(target, reference, target_layers)
    wanted = _wanted(layers, own, reference)
    if isinstance(wanted, tuple):
        chosen = wanted
    elif family is not None:
        chosen = layers_of_member(family, target, reference, wanted)
    else:
        with catch_signals() as stop:
            ids = _ids(reference, text)
            chosen = _order(reference, own, wanted, ids, text, stop, on_progress)[-1]
    return patch(target, reference, chosen, out, own, on_progress)


def family_on_text(
    target: ModelDirectory,
    reference: ModelDirectory,
    text: PatchText,
    out: Path | None = None,
    on_progress: Listener = silent,
    target_layers: TargetLayers = None,
) -> Family:
    """Measure every size between a target and its reference, with no training.

    The first half of the text decides which layer comes back first, the second half is measured on.

    Args:
        out: family.json to write, from which a stopped call goes on; None: none.
        target_layers: As for `patch_layers`.

    Raises:
        RecipeError: ``out`` holds something else.
        DataError: The text is too short.
        SourceError: The target was cut from another reference.
    """
    _refuse_other_file(out)
    reference = as_cut_from(target, reference)
    refuse_other_reference(target, reference)
    own, total = layer_map_of(target, reference, target_layers), reference.layers
    if len(own) == total:
        raise RecipeError(
            f"{target.name} has all {total} layers of its reference.", "Name a smaller target."
        )
    ids = _ids(reference, text)
    digest = sha256(ids.tobytes()).hexdigest()
    inputs = {
        "target": target.digest,
        "reference": reference.digest,
        "text": text.as_json() | {"ids_sha256": digest},
    }
    known = {} if out is None else stored_members(out, inputs)
    length = text.tokens_per_window
    stream = IdStream(ids[len(ids) // 2 :][: text.windows * length + 1])

    def keep(members: Sequence[Member]) -> None:
        if out is not None:
            keep_members(out, inputs, members)

    place = Path.cwd() / "family" if out is None else out.absolute()
    with catch_signals() as stop, write_errors(place), scratch_directory(place) as scratch:
        maps = sorted(known, key=len)
        if len(maps) <= total - len(own):  # not all sizes are known
            maps = [own, *_order(reference, own, total, ids, text, stop, on_progress)]
        measure = _Measure(reference, stream, length, stop, on_progress)
        members = measure_family(target, reference, maps, measure, known, keep, scratch / "size")
        loss = measure.reference_loss()
    return Family(reference.name, total, loss, text.source, tuple(members))


class _Measure:
    """Measures model directories on a text, against a reference that is loaded once."""

    def __init__(
        self,
        reference: ModelDirectory,
        stream: IdStream,
        length: int,
        stop: StopFlag,
        on_progress: Listener,
    ) -> None:
        self._reference, self._stream, self._length = reference, stream, length
        self._stop, self._on_progress = stop, on_progress
        self._live = cache(lambda: _load(reference.path))

    def __call__(self, directory: Path, layer_map: Cut) -> Measured:
        from inheritune.evaluation.fidelity import measure_fidelity
        from inheritune.training.throughput import count_params

        began, model, title = time.monotonic(), _load(directory), f"{len(layer_map)} layers"
        fidelity = measure_fidelity(
            self._live(), model, self._stream, self._length, _BATCH, self._stop, self._on_progress
        )
        loss = self._loss(model, title)
        return Measured(loss, count_params(model), time.monotonic() - began, fidelity)

    def reference_loss(self) -> float:
        return float(self._loss(self._live(), "reference").mean)

    def _loss(self, model: Any, title: str) -> Any:
        from inheritune.evaluation.val_loss import measure_val_loss

        return measure_val_loss(
            model, self._stream, self._length, _BATCH, self._stop, self._on_progress, title
        )


def _load(directory: Path) -> Any:
    from inheritune.training.hardware import choose_device
    from inheritune.training.models import load_model

    model: Any = load_model(directory)
    return model.to(choose_device())


def _wanted(
    layers: int | str | Sequence[int], own: Cut, reference: ModelDirectory
) -> int | tuple[int, ...]:
    """Return the number of layers of the patched model; or, where they are listed, all of them."""
    total = reference.layers
    missing = without(total, own)
    lacks = ", ".join(ranges(missing))
    if isinstance(layers, str):
        text = layers.strip()
        if not text.isdecimal() and way_of(text) is not None:
            raise RecipeError(
                f"{escape(repr(text))} does not say which layers to put back.",
                f"Give a number of layers, or a list of those that are missing, such as {lacks}.",
            )
        layers = int(text) if text.isdecimal() else choose_layers(text, LayerFacts(total))
    if isinstance(layers, int):
        if not len(own) < layers <= total:
            raise RecipeError(
                f"cannot patch {len(own)} layers to {layers}: the reference has {total}.",
                f"Choose between {len(own) + 1} and {total}.",
            )
        return layers
    for layer in check_selection(layers, total):
        if layer in own:
            raise RecipeError(
                f"layer {layer} is in the target already.",
                f"Choose among those that it lacks: {lacks}.",
            )
    return tuple(sorted((*own, *layers)))


def _ids(reference: ModelDirectory, text: PatchText) -> Any:
    limit = max_positions(reference.config)
    if limit is not None and text.tokens_per_window > limit:
        raise RecipeError(
            f"windows of {text.tokens_per_window} tokens are asked for, but {reference.name} has "
            f"{limit} positions.",
            f"Ask for {limit} tokens per window, or less.",
        )
    needed = 2 * (text.windows * text.tokens_per_window + 1)
    ids = text_ids(text.data, open_tokenizer(reference.path), needed)
    if len(ids) < needed:
        raise DataError(
            f"{escape(text.source)} has {len(ids):,} tokens, {needed:,} are needed: half to choose "
            "layers by, half to measure on.",
            "Give more text, or ask for fewer windows.",
        )
    return ids


def _order(
    reference: ModelDirectory,
    own: Cut,
    most: int,
    ids: Any,
    text: PatchText,
    stop: StopFlag,
    on_progress: Listener,
) -> list[Cut]:
    """List layer maps from one layer more than ``own`` to ``most``, the dearest layer first."""
    from inheritune.analysis.layer_scores import MeasuredScores
    from inheritune.analysis.sequences import draw_sequences

    half, tokenizer = ids[: len(ids) // 2], open_tokenizer(reference.path)
    length, bos = text.tokens_per_window, tokenizer.bos
    drawn = draw_sequences(half, text.windows, length, bos, text.source, text.seed)
    scores = MeasuredScores(reference, lambda: drawn, stop=stop, on_progress=on_progress)
    maps = [own]
    with scores.in_memory():
        while len(maps[-1]) < most:
            maps.append(give_back(scores, reference.layers, maps[-1], len(maps[-1]) + 1))
    return maps[1:]


def _refuse_other_file(out: Path | None) -> None:
    if out is None:
        return
    if out.is_dir() or not out.absolute().parent.is_dir():
        reason = "is a directory" if out.is_dir() else "lies in a directory that does not exist"
        raise RecipeError(f"--out {escape(out)} {reason}.", "Name a file.")
    if out.exists() and not holds_families(out):
        raise RecipeError(
            f"--out {escape(out)} exists, and is no family.json.",
            "Name another file, or remove it.",
        )
