"""Shard a model over several processes with FSDP2, and sum its gradients.

With one process only `my_share` is called.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)
from torch.distributed.tensor import DTensor

from inheritune.errors import RecipeError, SourceError
from inheritune.model_files.layers import find_container
from inheritune.recipe.sharding import micro_batches
from inheritune.recipe.training import Train
from inheritune.system.processes import Processes

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from inheritune.training.hardware import Settings


@dataclass(frozen=True)
class Piece:
    """The rows of a tensor that this process holds."""

    tensor: Tensor  # the rows; the whole tensor where it is not sharded
    first: int  # index of the first one in the whole tensor
    rows: int | None  # rows of the whole tensor; None: it is not sharded


def my_share(train: Train, processes: Processes) -> tuple[int, int]:
    """Return the sequences [first, stop) of every step that this process computes.

    Raises:
        RecipeError: The batch does not divide by the number of processes.
    """
    is_auto = train.micro_batch == "auto"
    size = 1 if is_auto else train.resolved_micro_batch
    factors = f"seq_len {'' if is_auto else 'x micro_batch '}x processes"
    quantum = train.seq_len * size * processes.size
    if train.batch_tokens % quantum:
        below = train.batch_tokens // quantum * quantum
        nearest = " or ".join(str(v) for v in (below, below + quantum) if v)
        smaller = [] if is_auto else micro_batches(train, processes.size, size)
        raise RecipeError(
            f"train.batch_tokens {train.batch_tokens} is not a multiple of {factors} = {quantum}.",
            f"The nearest that are: {nearest}."
            + (f" Or set train.micro_batch to {smaller[0]}." if smaller else ""),
        )
    each = train.batch_tokens // train.seq_len // processes.size
    return processes.rank * each, (processes.rank + 1) * each


def layer_modules(model: "PreTrainedModel") -> list[nn.Module]:
    """Find the modules that are the layers of a live model, as in its files: by numbered names.

    Raises:
        SourceError: No list of modules has as many entries as the config says.
    """
    count = model.config.get_text_config(decoder=True).num_hidden_layers
    try:
        prefix = find_container(model.state_dict(), count).prefix
        return list(model.get_submodule(prefix.rstrip(".")).children())[:count]
    except (SourceError, AttributeError):
        lists = [
            list(module.children())
            for module in model.modules()
            if isinstance(module, torch.nn.ModuleList) and len(module) == count
        ]
    if not lists:
        raise SourceError(f"cannot find the {count} layers of {type(model).__name__}.")
    return lists[0]


def mesh_of(processes: Processes, settings: "Settings") -> DeviceMesh | None:
    """Lay the processes out, which all call this at once; None for one alone.

    Neighbours by rank share a copy of the weights.
    """
    if processes.size == 1:
        return None
    shards, copies = settings.shards, processes.size // settings.shards
    shape = (shards,) if copies == 1 else (copies, shards)
    names = ("replicate", "shard")[-len(shape) :]
    return init_device_mesh(settings.device, shape, mesh_dim_names=names)


def shard(
    root: nn.Module,
    model: "PreTrainedModel",
    mesh: DeviceMesh,
    *,
    bf16: bool,
    frees_root: bool = False,
    offloads: bool = False,
) -> None:
    """Shard a model over the processes: each layer is a group, the rest is in the root's group.

    A tied head is gathered with the embedding, inside the root's forward pass. Gradients are
    summed, never averaged: they are divided once, by the number of targets of the whole step.

    Args:
        root: Holds the model and computes its loss; changed in place.
        bf16: Gather and compute in bf16; weights and the sum of gradients stay fp32.
        mesh: Where to compute, and where the weights are moved, group by group.
        frees_root: Whether what is gathered of the root's group is freed after its forward pass;
            a backward pass would have to gather it again.
        offloads: Whether what is sharded lies in the host's memory, and the optimizer steps there.
    """
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if bf16 else None, reduce_dtype=torch.float32
    )
    place = CPUOffloadPolicy(pin_memory=mesh.device_type == "cuda") if offloads else OffloadPolicy()
    for layer in layer_modules(model):
        fully_shard(layer, mesh=mesh, mp_policy=policy, offload_policy=place)
    fully_shard(
        root,
        mesh=mesh,
        mp_policy=policy,
        reshard_after_forward=True if frees_root else None,  # None: torch keeps a root gathered
        offload_policy=place,
    )
    for part in root.modules():
        if isinstance(part, FSDPModule):  # a sum takes both calls; the first alone raises on gloo
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)


def shards_of(model: nn.Module) -> int:
    """Return the number of processes that share one copy of a model's weights."""
    meshes = [p.device_mesh for p in model.parameters() if isinstance(p, DTensor)]
    return int(meshes[0].size(meshes[0].ndim - 1)) if meshes else 1


def sync_gradients(root: nn.Module, sync: bool) -> None:
    """Set whether the next backward pass sums gradients over the processes."""
    if isinstance(root, FSDPModule):
        root.set_requires_gradient_sync(sync)


def local(tensor: Tensor) -> Tensor:
    """Return this process's part of a tensor: a view, to be read or written in place."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor with the rows of all processes, which all call this at the same time."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def piece_of(tensor: Tensor) -> Piece:
    """Return this process's rows of a weight, a gradient, or an optimizer's state."""
    if not isinstance(tensor, DTensor):
        return Piece(tensor, 0, None)
    mesh, rows, own_rows = tensor.device_mesh, tensor.shape[0], tensor.to_local()
    shards, number = mesh.size(mesh.ndim - 1), mesh.get_local_rank(mesh.ndim - 1)
    each = -(-rows // shards)  # as torch.chunk: the last shards have fewer, or none
    first = min(number * each, rows)
    assert own_rows.shape[0] == min(first + each, rows) - first
    return Piece(own_rows, first, rows)
