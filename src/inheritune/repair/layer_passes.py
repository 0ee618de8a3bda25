"""Run the layers of a live model one at a time, each within the model's own forward pass.

B sequences, T tokens, D hidden.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from inheritune.errors import UnsupportedModelError, first_line
from inheritune.training.layers import find_layers, watched_by
from inheritune.training.lazy_logits import LazyLogits, lazy_logits
from inheritune.training.loss import logits_are_plain_head_output

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_ROUNDING = 1e-4  # relative difference between two orders of the same fp32 sums


class _ReachedError(Exception):
    """Ends a forward pass whose remaining layers are not needed."""


class LayerPasses:
    """Runs single layers of a model on hidden states of the caller's.

    The model's forward pass makes whatever else a layer takes (masks, positions, rotary tables).
    Within it, the layers before hand on their input, and those after are not reached.

    Attributes:
        model: In evaluation mode, fp32.
        layers: Its layers, from the input on.
    """

    def __init__(self, model: "PreTrainedModel", total: int, ids: Tensor) -> None:
        """Find the layers, and prove that running them one by one gives what the model computes.

        Args:
            total: Number of layers.
            ids: A few windows to prove it on, (B, T).

        Raises:
            UnsupportedModelError: It does not, since something happens between layers, or a layer
                takes more from the others than their output.
        """
        self.model = model.eval()
        self.layers = find_layers(model, total)
        self._forms: list[Callable[[Tensor], Any]] = []
        self._avoids_logits = logits_are_plain_head_output(model)
        self._prove(ids)

    def embed(self, ids: Tensor) -> Tensor:
        """Compute the input of the first layer, (B, T, D)."""
        with self._stop_at(0) as inputs:
            self._forward(ids)
        return inputs[0]

    def run(self, number: int, ids: Tensor, hidden: Tensor) -> Tensor:
        """Compute the output of one layer, (B, T, D), for an input of the same shape."""
        outputs: list[Tensor] = []

        def replace_input(module: nn.Module, args: Any, kwargs: Any) -> Any:
            if args:
                return (hidden.clone(), *args[1:]), kwargs  # layers may add to it in place
            return args, kwargs | {"hidden_states": hidden.clone()}

        def take_output(module: nn.Module, args: Any, output: Any) -> None:
            outputs.append(output[0] if isinstance(output, tuple | list) else output)
            raise _ReachedError

        layer = self.layers[number]
        with ExitStack() as stack:
            for before, form in zip(self.layers[:number], self._forms, strict=False):
                stack.enter_context(_handing_on(before, form))
            hook: Any = layer.register_forward_pre_hook(replace_input, with_kwargs=True)
            stack.callback(hook.remove)
            stack.callback(layer.register_forward_hook(take_output).remove)
            self._forward(ids)
        return outputs[0]

    def predict(self, ids: Tensor, hidden: Tensor) -> LazyLogits:
        """Compute the logits, (B T, V), that follow from an output of the last layer, (B, T, D)."""
        with ExitStack() as stack, torch.no_grad():
            for layer, form in zip(self.layers, self._forms, strict=True):
                stack.enter_context(_handing_on(layer, partial(_instead, form, hidden)))
            return lazy_logits(self.model, ids, self._avoids_logits).cast()

    def _forward(self, ids: Tensor) -> None:
        with torch.no_grad():
            try:
                self.model(input_ids=ids, use_cache=False)
            except _ReachedError:
                return

    @contextmanager
    def _stop_at(self, number: int) -> Iterator[list[Tensor]]:
        inputs: list[Tensor] = []

        def enter(_: int, hidden: Tensor) -> None:
            inputs.append(hidden)
            raise _ReachedError

        with watched_by(self.layers, enter, lambda *_: None, only=number):
            yield inputs

    def _prove(self, ids: Tensor) -> None:
        name = type(self.model).__name__
        inputs: list[Tensor] = []
        outputs: list[Tensor] = []
        with ExitStack() as stack:
            for layer in self.layers:
                hook = layer.register_forward_hook(lambda m, a, output: self._remember(output))
                stack.callback(hook.remove)
            before = partial(_keep, inputs)
            after = partial(_keep, outputs)
            stack.enter_context(watched_by(self.layers, before, after))
            self._forward(ids)
        if len(inputs) != len(self.layers) or any(x.dim() != 3 for x in inputs):
            raise _cannot(name, "does not run its layers once each, on one hidden state")
        if not all(map(torch.equal, inputs[1:], outputs[:-1])):
            raise _cannot(name, "changes the hidden state between its layers")
        hidden = inputs[0]
        try:
            for number in range(len(self.layers)):
                hidden = self.run(number, ids, hidden)
        except Exception as error:  # classes raise any type of error
            raise _cannot(
                name, f"does not run layer {number} alone: {first_line(error)}"
            ) from error
        distance = float((hidden - outputs[-1]).norm() / outputs[-1].norm())
        if not distance <= _ROUNDING:
            raise _cannot(name, f"computes outputs {distance:.1%} apart layer by layer")

    def _remember(self, output: Any) -> None:
        if isinstance(output, tuple | list):
            rest = output[1:]
            self._forms.append(lambda hidden: type(output)((hidden, *rest)))
        else:
            self._forms.append(lambda hidden: hidden)


def _keep(values: list[Tensor], number: int, hidden: Tensor) -> None:
    values.append(hidden.clone())


def _instead(form: Callable[[Tensor], Any], hidden: Tensor, _: Tensor) -> Any:
    return form(hidden)


@contextmanager
def _handing_on(layer: nn.Module, form: Callable[[Tensor], Any]) -> Iterator[None]:
    """Let a layer return its input, in the form of its outputs, while the block runs."""

    def hand_on(*args: Any, **kwargs: Any) -> Any:
        return form(args[0] if args else kwargs["hidden_states"])

    layer.forward = hand_on
    try:
        yield
    finally:
        del layer.forward


def _cannot(name: str, reason: str) -> UnsupportedModelError:
    return UnsupportedModelError(f"{name} {reason}.", "Leave the repair out (repair: none).")
