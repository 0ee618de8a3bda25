"""Fill in the recipe of a first run from facts about model, text and machine."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from inheritune.recipe.inherit import Inherit
from inheritune.recipe.rules import Split, first_train_section
from inheritune.recipe.variants import Grow


@dataclass(frozen=True)
class Method:
    """What makes a target of the layers that are left: keys of `inherit`, and of the target."""

    select: str = "first"
    repair: str = "none"
    distill: Mapping[str, Any] | None = None  # the target's section `distill`
    note: str = ""  # what a preset leaves out here of what it would have elsewhere


# The reference's predictions and hidden states, with a tenth of cross-entropy.
_KL_AND_HIDDEN = MappingProxyType({"alpha": 0.1, "hidden": {"loss": "cosine", "weight": 2.0}})

# The presets of `--method`: each with what takes its place where a reference or a text forbids it,
# the best first. `best` is what docs/log.md found best; after an experiment, change it here.
METHODS = {
    "paper": (Method(),),
    "best": (
        Method("auto", "sequential", _KL_AND_HIDDEN),
        Method("auto", "none", _KL_AND_HIDDEN, note="without a repair"),
        Method("first", "none", _KL_AND_HIDDEN, note="without a repair, and of the first layers"),
    ),
}
DEFAULT_METHOD = "best"  # of a first run

_MOST_ROUNDS = 2  # of growth, as in the demo
_ONE_PASS = 0.9  # of the expected tokens: an estimate must not end a run that it just fits


@dataclass(frozen=True)
class Facts:
    """What the recipe of a first run is filled in from.

    Attributes:
        name: Name of the run.
        model: Hub id, model directory, or ``embedded:demo``.
        reference_layers: Layers of the model.
        params: Parameters of the model, tied ones once.
        source: Files, folders or globs of text.
        layers: Number of first layers of the target, or a text for ``inherit.select``; None: half,
            growing once.
        split: Length of sequences, and what is held out.
        tokens: Training tokens of each round.
        tokens_reason: Where this number comes from, for a comment; may be empty.
        processes: Number of processes of the run.
        method: What makes a target of the layers.
    """

    name: str
    model: str
    reference_layers: int
    params: int
    source: tuple[str, ...]
    layers: int | str | None
    split: Split
    tokens: int
    tokens_reason: str = ""
    processes: int = 1
    method: Method = Method()


def fill(facts: Facts, given_train: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Fill in a recipe; what it leaves out has its default.

    Without a number of layers the target has half of the reference's, as in the paper, and grows
    once; with one it keeps that size. There is no control: scratch takes as long again.

    Args:
        given_train: Keys of `train` that are given already, which others follow.

    Returns:
        The recipe as plain values, and comments by dotted key.
    """
    split, total = facts.split, facts.reference_layers
    train = first_train_section(
        given_train, facts.tokens, split.seq_len, facts.params, facts.processes
    )
    data: dict[str, Any] = {
        "source": facts.source[0] if len(facts.source) == 1 else list(facts.source),
        "val_fraction": split.val_fraction,
    }
    comments = {
        "reference.model": f"{total} layers, {facts.params:,} parameters",
        "inherit.layers": f"of {total}",
        "inherit.select": f"of {total} layers",
        "train.seq_len": "tokens per sequence",
        "train.tokens": facts.tokens_reason or "per round",
        "train.learning_rate": "3e-4 sqrt(355M / parameters), from 1e-4 to 2e-3",
        "variants.inherit": "the target; for a control add: scratch: {start: fresh}",
    }
    if split.windows is not None:
        comments["data.val_fraction"] = f"about {split.windows:,} windows to validate on"
    if (epoch := split.train_tokens) is not None and facts.tokens > _ONE_PASS * epoch:
        data["allow_repeat"] = True
        comments["data.allow_repeat"] = f"about {facts.tokens / epoch:.1f} passes over the text"
    elif epoch is None or epoch > 2 * facts.tokens:
        # One sequence more: whole ones are drawn from what is prepared.
        data["tokens"] = facts.tokens + max(train["batch_tokens"], split.seq_len)
        comments["data.tokens"] = "as much of the text as is trained on"
    method = facts.method
    inherit: dict[str, Any] = {"layers": facts.layers}
    if isinstance(facts.layers, str):
        inherit = {"select": facts.layers}
    elif method.select != "first":
        inherit["select"] = method.select
        comments["inherit.select"] = "the cheapest of several ways, by scores on training text"
    fitted = _repair_tokens(split, data.get("tokens"))
    if method.repair != "none" and fitted >= 2 * split.seq_len:
        inherit["repair"] = method.repair
        if fitted < Inherit.model_fields["repair_tokens"].default:
            inherit["repair_tokens"] = fitted
        comments["inherit.repair"] = "least squares at the cut, before any training"
    target: dict[str, Any] = {"start": "inherit"}
    if method.distill is not None:
        target["distill"] = dict(method.distill)
    grow: dict[str, Any] = {"add": 0}
    if facts.layers is None:
        comments["inherit.layers"] = f"half of the {total}, as in the paper"
        grow = {"add": Grow.model_fields["add"].default, "max_rounds": _MOST_ROUNDS}
        comments["grow.add"] = "layers to add after a round that has not matched"
    else:
        comments["grow.add"] = "this size alone"
    values = {
        "name": facts.name,
        "reference": {"model": facts.model},
        "inherit": inherit,
        "data": data,
        "train": train,
        "grow": grow,
        "variants": {"inherit": target},
    }
    return values, comments


def method_note(name: str, method: Method) -> str:
    """Say in a comment which preset a recipe was filled in by."""
    return f"Method: {name}" + (f", {method.note}" if method.note else "")


def _repair_tokens(split: Split, prepared: int | None) -> int:
    """Tokens to fit a repair on: as many as usual, or all of a shorter training text.

    Args:
        prepared: Most tokens of the text that are prepared; None: all.
    """
    counts: list[int] = [Inherit.model_fields["repair_tokens"].default]
    counts += [count - 1 for count in (split.train_tokens, prepared) if count is not None]
    return min(counts) // split.seq_len * split.seq_len
