"""Estimate the memory that a training needs on each of its devices, from the config alone.

P positions of a micro-batch on one device, D hidden, F inside the MLP, V vocabulary; Q and K are
the widths of queries and of keys; an item has 2 bytes in bf16 and 4 in fp32.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from inheritune.model_files.config import text_config
from inheritune.model_files.flops import (
    attention_heads,
    experts_per_token,
    first_int,
    hidden_size,
    key_value_width,
)

BYTES_PER_PARAMETER = 16  # of a training without activations: fp32 weights and gradients, moments
# Measured: written, hashed and synced, on the disk of a rented machine (docs/log.md).
SAVED_BYTES_PER_S = 3e8

_USABLE = 0.92  # of a GPU's memory: the rest is its context, and gaps between blocks

CHUNK_LOGITS = 2**25  # as in training.lazy_logits
_BLOCK_LOGITS = 2**19  # as in training.chunked_loss
_INNER = ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size")
_EXPERT_INNER = ("moe_intermediate_size",)
_PLAIN_MLP = {"gpt2", "gpt_neox", "gpt_neo", "gptj", "opt", "bloom", "falcon", "phi", "starcoder2"}
_LAYER_NORM = _PLAIN_MLP | {"stablelm", "cohere", "mpt"}
_ONE_NORM_INPUT = {"gpt_neox", "phi", "gptj", "falcon", "cohere"}  # attention and MLP side by side
_FUSED_QUERIES = {"gpt2", "gpt_neox", "bloom", "falcon", "mpt", "phi3"}  # one product: one input
_HEAD_NORMS = {"qwen3", "qwen3_moe", "gemma3", "gemma3_text", "olmo2"}
_FOUR_NORMS = {"gemma2", "gemma3", "gemma3_text"}


@dataclass(frozen=True)
class Memory:
    """Estimated bytes on one device, at the moment of a step when it holds the most."""

    weights: int  # fp32, plus copies in the precision of the computation
    gradients: int  # fp32
    moments: int  # AdamW's two moments, fp32
    activations: int  # what the layers keep for the backward pass
    logits: int = 0  # from the head's product to the gradient of its input
    reference: int = 0  # of a distillation: weights in the precision of the computation

    @property
    def total(self) -> int:
        """Sum of all parts."""
        return (
            self.weights
            + self.gradients
            + self.moments
            + self.activations
            + self.logits
            + self.reference
        )


@dataclass(frozen=True)
class Layout:
    """How a training lies on its devices."""

    shards: int = 1  # processes that share one copy of the weights
    micro_batch: int = 1  # sequences per forward pass and process
    micro_batches: int = 1  # forward passes of a step in each process
    # Whether processes add up gradients after every pass; else each holds a whole one till the last
    sums_every_pass: bool = False
    recomputes: bool = False  # whether layers are computed again in the backward pass
    offloads: bool = False  # whether weights, gradients and moments lie in the host's memory
    matmul_attention: bool = False  # whether the attention keeps its weights, T for each position
    loss: Literal["logits", "chunks", "op"] = "logits"  # as in training.hardware

    @property
    def gathers_bf16(self) -> bool:
        """Whether the model computes in bf16 throughout, instead of by autocast."""
        return self.shards > 1


@dataclass(frozen=True)
class TrainedModel:
    """The sizes of a model that decide the memory of its training."""

    config: Mapping[str, Any]
    params: int
    in_layers: int  # of these, in layers
    layers: int
    tied: bool  # whether the head is the embedding
    trained: int  # parameters that are trained
    lowest_trained_layer: int = 0  # first layer whose activations a backward pass needs
    reference: int = 0  # parameters of the reference that runs beside it; 0: none does
    reference_layers: int = 0
    # Whether hidden states are compared: a slope for each layer is kept, in fp32.
    compares_hidden: bool = False

    @property
    def vocabulary(self) -> int:
        """V."""
        return first_int(text_config(self.config), ("vocab_size",)) or 0

    @property
    def width(self) -> int:
        """D."""
        return hidden_size(text_config(self.config))

    @property
    def head(self) -> int:
        """Parameters of the head, V D."""
        return self.vocabulary * self.width

    @property
    def layer(self) -> int:
        """Parameters of one layer."""
        return self.in_layers // self.layers


def estimate_memory(model: TrainedModel, layout: Layout, seq_len: int, precision: str) -> Memory:
    """Estimate the most that a device holds in a step: at the loss, or before the update.

    Weights and AdamW's moments are there all the time; gradients grow while activations go.

    Args:
        precision: ``"bf16"`` or ``"fp32"``.
    """
    bf16 = precision == "bf16"
    item, positions = 2 if bf16 else 4, layout.micro_batch * seq_len
    shards, kept = layout.shards, model.layers - model.lowest_trained_layer
    own = 0 if layout.offloads else 1  # of weights, gradients and moments: here, or in the host

    # --- what is always there ---
    stored = own * 4 * model.params // shards
    moments = own * 8 * model.trained // shards
    if shards == 1:
        # Autocast keeps a copy of each matrix; an embedding that is no head is only looked up.
        matrices = model.params - (0 if model.tied else model.head)
        copies = item * matrices if bf16 else 0
        at_rest = model.reference * item
    else:
        # Gathered: all outside the layers, and two layers, since the next comes while one runs.
        copies = item * (model.params - model.in_layers + 2 * model.layer)
        at_rest = _sharded_reference(model, item, shards)
    gradients = own * 4 * model.trained // shards
    # Sums of earlier micro-batches; processes add theirs up behind the last one only.
    earlier = 0
    if layout.micro_batches > 1:
        earlier = gradients if layout.sums_every_pass else 4 * model.trained

    # --- what the layers keep ---
    layer = layer_bytes(model.config, positions, seq_len, item, layout)
    edge = (4 if not layout.gathers_bf16 or not bf16 else 2) * positions * model.width
    hidden = kept * (edge if layout.recomputes else layer) + 3 * edge
    hidden += 4 * model.compares_hidden * positions * model.width * kept
    backward = _layer_gradient(model.config, positions, item)
    if layout.recomputes:
        backward += layer

    # --- the moments at which the most is held ---
    logits = _logits(model, positions, item, layout)
    at_loss = Memory(stored + copies, earlier, moments, hidden, logits, at_rest)
    held = copies
    if layout.recomputes and shards == 1:  # copies go with the forward pass, and come back in turn
        held = min(copies, item * (model.head + model.layer)) if bf16 else 0
    in_last_layer = replace(
        at_loss,
        weights=stored + held,
        gradients=earlier + 4 * min(model.head, model.trained),
        activations=hidden + backward,
        logits=0,
    )
    # A tied weight gets two gradients; and one that comes late is added to that of earlier passes.
    late = 4 * model.head if model.tied or earlier else 0
    summed = gradients if shards == 1 or layout.sums_every_pass else earlier + gradients
    at_update = Memory(stored, max(earlier, summed) + late, moments, edge, 0, at_rest)
    return max(at_loss, in_last_layer, at_update, key=lambda memory: memory.total)


def room_in(memory_bytes: int | None) -> int | None:
    """Return the bytes of a device that a training can take; None: not known."""
    return None if memory_bytes is None else int(_USABLE * memory_bytes)


def first_that_fits(
    layouts: Sequence[Layout],
    recomputing: str,
    model: TrainedModel | None,
    seq_len: int,
    precision: str,
    room: int | None,
) -> Layout:
    """Resolve ``train.micro_batch`` and ``train.activation_checkpointing``, which are one decision.

    Recomputing costs a third more work, small micro-batches next to nothing: so layers are
    recomputed only where no layout fits without. The last one is taken where none fits at all.

    Args:
        layouts: Those to choose from, the best first; without recomputing.
        recomputing: ``"auto"``, ``"on"`` or ``"off"``.
        model: What is trained; None: something that fits in any way.
        room: Bytes of `room_in`; None: not known, and taken to be enough.
    """
    tried = {"auto": (False, True), "on": (True,), "off": (False,)}[recomputing]
    options = [replace(layout, recomputes=on) for on in tried for layout in layouts]
    if model is None or room is None:
        return options[0]
    for option in options[:-1]:
        if estimate_memory(model, option, seq_len, precision).total <= room:
            return option
    return options[-1]


def layer_bytes(
    config: Mapping[str, Any], positions: int, seq_len: int, item: int, layout: Layout
) -> int:
    """Count the bytes that one layer keeps for its backward pass.

    Counted in the classes of transformers: inputs of matrix products, of norms, activations and
    attention. Under autocast the residual stream stays fp32, and each product casts its own input.
    """
    section = text_config(config)
    kind = str(section.get("model_type"))
    width = hidden_size(section)
    heads, size = attention_heads(section)
    queries, keys = int(heads * size), key_value_width(section) // 2
    autocast = item == 2 and not layout.gathers_bf16
    stream = 4 if item == 4 or autocast else 2

    # --- norms: LayerNorm keeps its input, RMSNorm the scaled input as well, both in fp32 ---
    norms = 1 if kind in _ONE_NORM_INPUT else 4 if kind in _FOUR_NORMS else 2
    norm_bytes = norms * width * (stream if kind in _LAYER_NORM else 4 + stream)
    if kind in _HEAD_NORMS:
        norm_bytes += (queries + keys) * (4 + item)

    # --- attention: inputs of the products; queries, keys, values and what comes out ---
    inputs = 3 if autocast and kind not in _FUSED_QUERIES else 1
    attention = inputs * width * item + (2 * queries + 2 * keys) * item
    if kind == "gpt_neox":  # rotated copies beside the product, and one of what comes out
        attention += 3 * queries * item
    if layout.matmul_attention or section.get("attn_logit_softcapping"):
        # The weights of all keys, and keys and values repeated for each query.
        attention += (heads * seq_len + 2 * (queries - keys)) * item + queries * item

    # --- MLP: its input, and what the activation and the last product take ---
    inner = first_int(section, _INNER) or 4 * width
    if (experts := experts_per_token(section)) > 1:
        inner = (first_int(section, _EXPERT_INNER) or inner) * experts
    gated = kind not in _PLAIN_MLP
    mlp = (2 if autocast and gated else 1) * width * item + (4 if gated else 2) * inner * item
    return positions * (norm_bytes + attention + mlp)


def _layer_gradient(config: Mapping[str, Any], positions: int, item: int) -> int:
    """Bytes of the gradients that are under way inside a layer: of its MLP, and of the stream."""
    section = text_config(config)
    width = hidden_size(section)
    inner = first_int(section, _INNER) or 4 * width
    return positions * (2 * inner * item + 2 * width * 4)


def _logits(model: TrainedModel, positions: int, item: int, layout: Layout) -> int:
    """Bytes of the loss at its worst, with the gradient of the head where it is there already."""
    rows, head = positions * model.vocabulary, model.head
    if model.reference or layout.loss == "chunks":
        return _chunks(model, positions, item, layout)
    if layout.loss == "op":
        # Chunks of as many logits as the states have values; sums of the head's gradient, and in
        # bf16 the head's copy and that of its gradient.
        return 3 * 4 * positions * model.width + (8 if item == 4 else 18) * head
    # log softmax, and the two gradients that lead through it; then that of the head
    return max(12 * rows, (8 if item == 4 else 6) * rows + 4 * head)


def _chunks(model: TrainedModel, positions: int, item: int, layout: Layout) -> int:
    """Bytes of a loss whose logits, of one or two models, are made a chunk at a time."""
    rows, head, models = positions * model.vocabulary, model.head, 2 if model.reference else 1
    chunk = min(rows, max(CHUNK_LOGITS, model.vocabulary))
    several = chunk < rows
    # The chunk before is there until the next is made.
    logits = models * (2 if several else 1) * item * chunk
    # Of a block in fp32: log softmax; beside a reference its distribution and a slope, too; and of
    # bf16 logits a copy. Only on a CPU, which has no `op`, is a block less than a chunk.
    in_block = chunk if layout.loss == "op" else min(chunk, _BLOCK_LOGITS)
    block = 4 * ((3 if model.reference else 1) + (item == 2)) * in_block
    # The head's gradient: the sum in fp32, and where it is not the first in fp32, a chunk's.
    total, of_chunk = 4 * head, item * head if several or item == 2 else 0
    at_most = max(block + total * several, total + of_chunk)
    copies = models * item * head if item == 2 else 0
    return logits + at_most + copies + 2 * item * positions * model.width


def _sharded_reference(model: TrainedModel, item: int, shards: int) -> int:
    """Bytes of a reference whose layers are gathered one after the other, and of its head."""
    if not model.reference:
        return 0
    outside = (1 if model.tied else 2) * model.head
    layer = max(0, model.reference - outside) // max(1, model.reference_layers)
    return item * (model.reference // shards + max(2 * layer, model.head))
