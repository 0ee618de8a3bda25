"""Measure what the layers of a model do, and choose those to inherit by scores."""

from contextlib import ExitStack
from typing import TYPE_CHECKING

from inheritune.api.call import (
    Model,
    PathLike,
    ProgressOption,
    Text,
    Tokens,
    call,
    optional_path,
    optional_text,
    refuse_below,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from inheritune.analysis.analyze import Analysis
    from inheritune.analysis.select import LayerSelection


def analyze(
    model: Model,
    *,
    against: "Model | None" = None,
    tokens: "Tokens | None" = None,
    text: Text | None = None,
    sequences: int = 100,
    tokens_per_sequence: int = 100,
    threshold: float = 0.9,
    bos: str = "auto",
    spectrum: bool = False,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    progress: ProgressOption = True,
) -> "Analysis":
    """Measure attention rank and mass of every layer, what each layer does, and advise on a size.

    Args:
        model: The model; in memory, too.
        against: A target that was made from it, measured on the same sequences.
        tokens: Token directory; sequences are drawn from its held-out tokens.
        text: Text to draw them from instead: `data.source` of a recipe, or a mapping with keys of
            that section; None: Python's library.
        sequences: N, number of sequences.
        tokens_per_sequence: T, tokens of each.
        threshold: Share of the squared singular values that a rank holds, in (0, 1).
        bos: Begin each sequence with BOS: ``yes``, ``no``, or ``auto``, as the tokenizer does.
        spectrum: Also compute singular values of the weights; large matrices take long.
        tokenizer: Tokenizer of a model in memory; None: the one that it was loaded with.
        progress: True draws a bar, False is silent, a function is called with each event.

    Returns:
        A row for each layer; ``advice`` says how many first layers to inherit.

    Raises:
        UnsupportedModelError: The attention cannot be observed.
        DataError: The text is too short, or of another tokenizer.

    Source: Sanyal et al., Inheritune, arXiv 2404.08634, section 2.
    """
    from inheritune.analysis.analyze import analyze as analyze_models
    from inheritune.analysis.sequences import sequences_for
    from inheritune.model_files.in_memory import opened_model

    refuse_below(1, sequences=sequences)
    refuse_below(2, tokens_per_sequence=tokens_per_sequence)
    with call(progress) as on_progress, ExitStack() as stack:
        first = stack.enter_context(opened_model(model, tokenizer=tokenizer))
        models = [("model", first)]
        if against is not None:
            target = stack.enter_context(opened_model(against, tokenizer=tokenizer))
            models = [("reference", first), ("target", target)]
        drawn = sequences_for(
            [directory for _, directory in models],
            sequences,
            tokens_per_sequence,
            tokens=optional_path(tokens),
            text=optional_text(text),
            bos=bos,
        )
        return analyze_models(
            models, drawn, threshold=threshold, spectrum=spectrum, on_progress=on_progress
        )


def select(
    reference: Model,
    layers: int | None = None,
    *,
    select: str = "auto",
    text: Text | None = None,
    windows: int = 32,
    tokens_per_window: int | None = None,
    bos: str = "auto",
    seed: int = 0,
    out: PathLike | None = None,
    revision: str | None = None,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    progress: ProgressOption = True,
) -> "LayerSelection":
    """Choose the layers to inherit by scores on calibration text, before any training.

    A cut's score is KL(reference || cut), mean over the tokens of the text.

    Args:
        reference: The model to choose from; in memory, too.
        layers: Number of layers to keep; None: ``select`` states it.
        select: How to choose: ``"block"``, ``"greedy"``, ``"influence"``, ``"angular"``,
            ``"norm-ratio"``, ``"auto"`` for the cheapest of them, or any selection of `inherit`.
        text: Calibration text: `data.source` of a recipe, or a mapping with keys of that section;
            None: Python's standard library. Take text to train on, never text to validate on.
        windows: Number of windows of the text.
        tokens_per_window: Tokens of each; None: 256, or as many as the reference has positions.
        bos: Begin each window with BOS: ``yes``, ``no``, or ``auto``, as the tokenizer does.
        seed: Seed of the choice of windows.
        out: File that keeps every score, from which a stopped call goes on; None: none.
        revision: Branch, tag or commit of a Hub id.
        tokenizer: Tokenizer of a model in memory; None: the one that it was loaded with.
        progress: True draws a bar, False is silent, a function is called with each event.

    Returns:
        A row for each layer; ``layers`` are those to keep, ``choices`` what was compared.

    Raises:
        RecipeError: The reference has no such layers, or all of them would stay.
        DataError: The text is too short.
        UnsupportedModelError: Its layers cannot be run one by one, or such a target cannot be.
    """
    from inheritune.analysis.select import refuse_selection, select_layers
    from inheritune.analysis.sequences import sequences_for
    from inheritune.data.calibration import window_tokens
    from inheritune.model_files.in_memory import opened_model

    refuse_below(1, layers=layers, windows=windows)
    refuse_below(2, tokens_per_window=tokens_per_window)
    with call(progress) as on_progress, ExitStack() as stack:
        model = stack.enter_context(opened_model(reference, revision, tokenizer=tokenizer))
        refuse_selection(model, select, layers)
        data, length = optional_text(text), tokens_per_window or window_tokens(model.config)
        drawn = sequences_for([model], windows, length, text=data, bos=bos, seed=seed)
        return select_layers(model, select, layers, drawn, optional_path(out), on_progress)
