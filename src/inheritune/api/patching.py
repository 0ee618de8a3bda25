"""Put layers of the reference back into a trained target, with no training."""

from collections.abc import Sequence
from contextlib import ExitStack
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING

from inheritune.api.call import (
    PathLike,
    ProgressOption,
    StoredModel,
    Text,
    call,
    optional_path,
    refuse_below,
    text_data,
)

if TYPE_CHECKING:
    from inheritune.evaluation.family import Family
    from inheritune.model_files.directory import ModelDirectory


def patch(
    target: StoredModel,
    reference: StoredModel,
    layers: int | str | Sequence[int],
    out: PathLike,
    *,
    target_layers: int | str | Sequence[int] | None = None,
    family: PathLike | None = None,
    text: Text | None = None,
    windows: int = 32,
    tokens_per_window: int | None = None,
    seed: int = 0,
    revision: str | None = None,
    progress: ProgressOption = True,
) -> "ModelDirectory":
    """Write a trained target with untrained layers of its reference put back, to be used as it is.

    A layer of the target gives way to the reference's own where all layers that it stood for come
    back. All other tensors of the target are kept bit for bit; what comes back takes its dtype.

    Args:
        target: Layers of the reference, trained.
        reference: The model that the target was cut from.
        layers: Number of layers of the patched model: the layer whose return lowers the KL
            divergence most comes back first. Or the layers to put back, as a list or ``"3,5-7"``.
        out: The directory to write; missing or empty.
        target_layers: Layers of the reference that the target has, as for `inherit`; None: as its
            inherit.json says.
        family: family.json of `family` or of a run, which has the order; None: the text decides.
        text: Text to score on: `data.source` of a recipe, or a mapping with keys of that section;
            None: Python's standard library. Take text to train on, never text to validate on.
        windows: Number of windows of the text.
        tokens_per_window: Tokens of each; None: 256, or as many as the reference has positions.
        seed: Seed of the choice of windows.
        revision: Branch, tag or commit of a Hub id.
        progress: True draws a bar, False is silent, a function is called with each event.

    Raises:
        RecipeError: The target has such a layer already, or the reference has none.
        SourceError: The target was cut from another reference, nothing says which layers it has,
            or the family is of other models.
        UnsupportedModelError: A layer would not compute what it does in the reference.

    Source: Kangaslahti et al., Boomerang distillation, arXiv 2510.05064.
    """
    from inheritune.data.calibration import window_tokens
    from inheritune.model_files.in_memory import opened_model
    from inheritune.run.patching import PatchText, patch_layers

    refuse_below(1, windows=windows)
    refuse_below(2, tokens_per_window=tokens_per_window)
    chosen = layers if isinstance(layers, str | Sequence) else index(layers)
    with call(progress) as on_progress, ExitStack() as stack:
        model = stack.enter_context(opened_model(target))
        whole = stack.enter_context(opened_model(reference, revision))
        length = tokens_per_window or window_tokens(whole.config)
        source = PatchText(text_data(text or "stdlib"), windows, length, seed)
        order = optional_path(family)
        return patch_layers(
            model, whole, chosen, Path(out), source, order, on_progress, target_layers
        )


def family(
    target: StoredModel,
    reference: StoredModel,
    *,
    target_layers: int | str | Sequence[int] | None = None,
    text: Text | None = None,
    windows: int = 32,
    tokens_per_window: int | None = None,
    seed: int = 0,
    out: PathLike | None = None,
    revision: str | None = None,
    progress: ProgressOption = True,
) -> "Family":
    """Measure every size between a trained target and its reference, with no training.

    Each is made as `patch` makes it. The first half of the text decides which layer comes back
    first, the second half is measured on.

    Args:
        target: Layers of the reference, trained.
        reference: The model that the target was cut from.
        target_layers: As for `patch`.
        text: Text: `data.source` of a recipe, or a mapping with keys of that section; None:
            Python's standard library.
        windows: Number of windows of each half.
        tokens_per_window: Tokens of each; None: 256, or as many as the reference has positions.
        seed: Seed of the choice of windows that layers are chosen by.
        out: family.json to write, from which a stopped call goes on; None: none.
        revision: Branch, tag or commit of a Hub id.
        progress: True draws a bar, False is silent, a function is called with each event.

    Returns:
        A row for each size, that of the target first: loss, KL to the reference, agreement.

    Raises:
        RecipeError: The target has all layers, or ``out`` holds something else.
        DataError: The text is too short.
        SourceError: The target was cut from another reference.
    """
    from inheritune.data.calibration import window_tokens
    from inheritune.model_files.in_memory import opened_model
    from inheritune.run.patching import PatchText, family_on_text

    refuse_below(1, windows=windows)
    refuse_below(2, tokens_per_window=tokens_per_window)
    with call(progress) as on_progress, ExitStack() as stack:
        model = stack.enter_context(opened_model(target))
        whole = stack.enter_context(opened_model(reference, revision))
        length = tokens_per_window or window_tokens(whole.config)
        source = PatchText(text_data(text or "stdlib"), windows, length, seed)
        file = optional_path(out)
        return family_on_text(model, whole, source, file, on_progress, target_layers)
