"""Score cuts of a model: how far their predictions are from those of the whole model.

Layers that two cuts have in common from the input on are run once for both: see `cut_walk`.

B sequences, T tokens, D hidden, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from inheritune.analysis.cut_walk import common_layers, count_layers, walk_order
from inheritune.surgery.removal import Cut
from inheritune.system.progress import Listener, Progress, silent
from inheritune.system.signals import StopFlag
from inheritune.training.kl_divergence import token_divergence
from inheritune.training.layers import find_layers
from inheritune.training.lazy_logits import LazyLogits, lazy_logits
from inheritune.training.loss import logits_are_plain_head_output

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


_MOST_SEQUENCES = 16  # in a forward
_MOST_BYTES = 2**29  # of hidden states and the whole model's predictions, beside a single sequence


@dataclass(frozen=True)
class CutScore:
    """How a cut predicts calibration text, means over tokens."""

    kl: float  # KL(whole model || cut), nats per token
    loss: float  # cross-entropy of the text, nats per token


@dataclass(frozen=True)
class ScoredCuts:
    """Scores of cuts, and what they took."""

    whole: CutScore  # of the whole model; its kl is 0
    cuts: list[CutScore]  # in the order of the cuts
    layers_run: int  # layers that were run on every token
    heads_run: int  # heads that were run on every token


def score_cuts(
    model: "PreTrainedModel",
    total: int,
    ids: NDArray[np.int64],
    cuts: Sequence[Cut],
    stop: StopFlag | None = None,
    on_progress: Listener = silent,
    task: str = "scores of cuts",
) -> ScoredCuts:
    """Score cuts of a model on the same sequences, without making the cuts.

    A layer that a cut leaves out hands its input on. At most N hidden states, (B, T, D), and the
    whole model's predictions, (B, T, V), are in memory.

    Args:
        model: A causal language model; left in evaluation mode.
        total: N, its number of layers.
        ids: Token ids, one sequence a row; every token but the first is predicted.
        cuts: Layers that are kept, ascending.

    Raises:
        UnsupportedModelError: The model has no list of so many layers.
        Interrupted: ``stop`` was set.
    """
    layers = find_layers(model, total)
    avoids_logits = logits_are_plain_head_output(model.eval())
    whole = tuple(range(total))
    order = walk_order(total, cuts)
    walk = _Walk(layers, order)
    sums = np.zeros((len(order), 2))
    each = _sequences_per_forward(model, total, ids.shape[1])
    starts = range(0, len(ids), each)
    done = 0
    with torch.no_grad(), walk.wired():
        for first in starts:
            batch = torch.from_numpy(ids[first : first + each]).to(model.device)
            log_p: Tensor | None = None
            for place in range(len(order)):
                if stop is not None:
                    stop.check(f"the measurement of {task} is made again")
                with walk.along(place):
                    logits = lazy_logits(model, batch[:, :-1], avoids_logits).cast()
                labels = batch[:, 1:].flatten()
                log_p = _log_probabilities(logits) if log_p is None else log_p
                sums[place] += _summed(log_p, logits, labels)
                done += 1
                on_progress(Progress(task, done, len(starts) * len(order), "forwards"))
    means = sums / (len(ids) * (ids.shape[1] - 1))
    scores = {cut: CutScore(*row) for cut, row in zip(order, means.tolist(), strict=True)}
    return ScoredCuts(scores[whole], [scores[cut] for cut in cuts], count_layers(order), len(order))


def _sequences_per_forward(model: "PreTrainedModel", total: int, length: int) -> int:
    embeddings: Any = model.get_input_embeddings()
    rows, width = map(int, embeddings.weight.shape)
    return max(1, min(_MOST_SEQUENCES, _MOST_BYTES // (4 * length * (total * width + rows))))


def _log_probabilities(logits: LazyLogits) -> "Tensor":
    return torch.cat([logits.rows(part).float().log_softmax(-1) for part in logits.chunks()])


def _summed(log_p: "Tensor", logits: LazyLogits, labels: "Tensor") -> NDArray[np.float64]:
    """Sum KL(p || q) and -log q[label] over tokens: (2,)."""
    sums = torch.zeros(2, dtype=torch.float64, device=labels.device)
    for part in logits.chunks():
        log_q = logits.rows(part).float().log_softmax(-1)  # (n, V)
        kl = token_divergence(log_p[part], log_p[part].exp(), log_q)
        loss = -log_q.gather(1, labels[part, None])
        sums += torch.stack((kl.double().sum(), loss.double().sum()))
    return sums.cpu().numpy()


class _Walk:
    """Runs a model along one cut after another, from where the cut leaves the one before."""

    def __init__(self, layers: Sequence[nn.Module], order: Sequence[Cut]) -> None:
        self._layers, self._order = layers, order
        self._common = common_layers(order)
        self._states: dict[int, Tensor] = {}  # hidden state by number of layers that were run
        self._others: dict[int, tuple[Any, ...] | None] = {}  # what a layer returns beside it
        self._place = 0
        self._run: dict[int, int] = {}  # position in the present cut by layer

    @contextmanager
    def wired(self) -> Iterator[None]:
        """Have the layers follow the walk while the block runs."""
        before = [layer.__dict__.get("forward") for layer in self._layers]
        for number, layer in enumerate(self._layers):
            layer.forward = partial(self._pass, number, layer.forward)
        try:
            yield
        finally:
            for layer, forward in zip(self._layers, before, strict=True):
                del layer.forward
                if forward is not None:
                    layer.forward = forward

    @contextmanager
    def along(self, place: int) -> Iterator[None]:
        """Run the model along the cut at ``place`` of the order; places follow each other."""
        self._place = place
        self._run = {layer: position for position, layer in enumerate(self._order[place])}
        common = self._common[place]
        self._states = {depth: self._states[depth] for depth in self._states if depth <= common}
        # A later cut leaves this one at the least of the common lengths up to it.
        self._forks, least = set[int](), len(self._layers)
        for later in self._common[place + 1 :]:
            least = min(least, later)
            self._forks.add(least)
        yield

    def _pass(
        self, number: int, forward: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> "Tensor | tuple[Any, ...]":
        hidden = args[0] if args else kwargs["hidden_states"]
        position, common = self._run.get(number), self._common[self._place]
        if position is None or position < common:
            if position == common - 1:
                hidden = self._states[common].clone()  # a layer may add to its input in place
            others = self._others[number]
            return hidden if others is None else (hidden, *others)
        output = forward(*args, **kwargs)
        is_sequence = isinstance(output, tuple | list)
        hidden = output[0] if is_sequence else output
        if self._place == 0:
            self._others[number] = tuple(output[1:]) if is_sequence else None
        if position + 1 in self._forks:
            self._states[position + 1] = hidden.clone()
        return output  # type: ignore[no-any-return]
