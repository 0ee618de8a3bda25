"""Choose device, precision and kernels for a training, once, from the machine and the plan.

The measurements behind each choice stand in docs/log.md.
"""

import ctypes
import platform
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inheritune.errors import MachineError, RecipeError
from inheritune.model_files.training_memory import Layout, TrainedModel, first_that_fits, room_in
from inheritune.recipe.sharding import (
    MOST_ON_A_CPU,
    bytes_at_rest,
    micro_batch_choices,
    shard_count,
    sums_every_pass,
)
from inheritune.recipe.training import Train
from inheritune.training.kernels import LONGEST_SEQUENCE

if TYPE_CHECKING:
    import torch


# A compiled step is 1.14-1.3 times faster, compiling takes 17-30 s: it pays back beyond about
# three minutes, which is this many FLOPs on two cores.
COMPILE_PAYS_FLOPS = 1e14

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h


@dataclass(frozen=True)
class Settings:
    """Device, precision and kernels of a training; they change its results by rounding only."""

    device: str
    precision: str  # ``"bf16"`` (autocast over fp32 weights) or ``"fp32"``
    attention: str  # ``"matmul"`` or ``"model"``
    compile: bool
    fused_gelu: bool
    fused_optimizer: bool
    keep_large_blocks: bool  # whether glibc keeps freed memory
    # ``"logits"``; ``"op"`` or ``"chunks"``, where possible and worth it: these never hold them
    loss: str = "logits"
    # Sequences of a forward pass that `auto` came to; None: as the recipe says
    micro_batch: int | None = None
    activation_checkpointing: bool = False  # whether layers are computed again in the backward pass
    processes: int = 1
    shards: int = 1  # processes that share one copy of the weights
    sums_every_pass: bool = False  # over processes: after every micro-batch, or once in a step
    offloads: bool = False  # whether the host's memory holds weights, gradients and moments
    begins_on_host: bool = False  # whether the model is too large for a device until it is sharded
    reasons: Mapping[str, str] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """Return the settings as JSON values."""
        return asdict(self)

    def compared(self) -> dict[str, Any]:
        """Return what decides rounding, for a checkpoint; what only saves memory is left out."""
        names = (
            *("device", "precision", "gathers_bf16", "attention", "loss"),
            *("compile", "fused_gelu", "fused_optimizer"),
        )
        chosen = {} if self.micro_batch is None else {"micro_batch": self.micro_batch}
        # Gradients are summed over processes in fp32 on every machine: see `fsdp.shard`.
        always = {name: getattr(self, name) for name in names} | {"gradients_summed_in": "fp32"}
        return always | chosen

    def resolved(self, train: Train) -> Train:
        """Return the section with the micro-batch that its `auto` came to."""
        if self.micro_batch is None:
            return train
        return train.model_copy(update={"micro_batch": self.micro_batch})

    @property
    def gathers_bf16(self) -> bool:
        """Whether processes gather weights in bf16; autocast has nothing left to do then."""
        return self.processes > 1 and self.device == "cuda" and self.precision == "bf16"

    def autocast(self) -> "torch.autocast":
        """Return a context in which forward passes compute in `precision`."""
        import torch

        casts = self.precision == "bf16" and not self.gathers_bf16
        return torch.autocast(self.device, torch.bfloat16, enabled=casts)


def choose_settings(
    train: Train,
    planned_flops: float,
    processes: int = 1,
    *,
    machines: int = 1,
    model: TrainedModel | None = None,
    memory: int | None = None,
    before: int | None = None,
) -> Settings:
    """Resolve every `auto` of the section `train` on this machine.

    Args:
        planned_flops: FLOPs of the training; they decide whether compiling pays.
        machines: Machines that the processes run on.
        model: What is trained; None: something that fits in any way.
        memory: Bytes of the smallest device of all processes; None: this one's, if it is a GPU.
        before: Micro-batch of the checkpoint that is gone on from, where `auto` chose it.

    Raises:
        MachineError: bf16 was asked for on a GPU that has none.
        RecipeError: ``train.shard_size`` does not divide the processes, or one alone is to offload.
    """
    device = choose_device()
    memory = device_memory(device) if memory is None else memory
    if train.offload == "on" and processes == 1:
        raise RecipeError(
            "train.offload is on, and there is one process.",
            "Start several, one for each device; or set train.offload to off.",
        )
    gpu = "there is one" if device == "cuda" else "torch finds no GPU that it can use"
    reasons: dict[str, str] = {"device": gpu}
    precision, reasons["precision"] = _precision(train, device)
    attention, reasons["attention"] = _attention(train, device)
    compiled, reasons["compile"] = _compile(train, device, planned_flops, processes)
    params, trained = (0, 0) if model is None else (model.params, model.trained)
    at_rest = bytes_at_rest(params, trained, 0 if model is None else model.reference, precision)
    shards = shard_count(train, processes, machines, at_rest, memory)
    base = Layout(
        shards=shards,
        sums_every_pass=sums_every_pass(trained, shards, memory),
        offloads=train.offload == "on",
        matmul_attention=attention == "matmul",
        loss="op" if device == "cuda" else "chunks",  # on a CPU the op is 1.1-6 times slower
    )
    room = None if model is None else room_in(memory)
    most = before or (MOST_ON_A_CPU if room is None else None)
    sizes = micro_batch_choices(train, processes, most)
    reasons["micro_batch"] = _why_micro_batch(train, room, before)
    share = train.batch_tokens // train.seq_len // processes
    layouts = [replace(base, micro_batch=n, micro_batches=share // n) for n in sizes]
    recomputing = train.activation_checkpointing
    layout = first_that_fits(layouts, recomputing, model, train.seq_len, precision, room)
    keeps_memory = device == "cpu" and _has_glibc() and train.keep_large_blocks != "off"
    return Settings(
        device=device,
        precision=precision,
        attention=attention,
        compile=compiled,
        fused_gelu=train.fused_gelu != "off",
        fused_optimizer=train.fused_optimizer != "off",
        keep_large_blocks=keeps_memory,
        loss=layout.loss,
        micro_batch=layout.micro_batch if train.micro_batch == "auto" else None,
        activation_checkpointing=layout.recomputes,
        processes=processes,
        shards=shards,
        sums_every_pass=layout.sums_every_pass,
        offloads=layout.offloads,
        # Whole and in fp32 it is loaded; gradients and moments come when it is sharded.
        begins_on_host=processes > 1 and memory is not None and 4 * params > memory,
        reasons=reasons,
    )


def _why_micro_batch(train: Train, room: int | None, before: int | None) -> str:
    if train.micro_batch != "auto":
        return "the recipe says so"
    if before is not None:
        return f"as before, if {before} divides the step here"
    if room is None:
        return f"at most {MOST_ON_A_CPU} on a CPU, whose memory is not counted"
    return f"the largest that fits into {room:,} bytes"


def choose_device() -> str:
    """Return ``"cuda"`` where there is a GPU that torch can use, else ``"cpu"``."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def device_memory(device: str) -> int | None:
    """Return the bytes of the GPU that this process uses; None on a CPU, which all share."""
    import torch

    return int(torch.cuda.get_device_properties().total_memory) if device == "cuda" else None


def _has_glibc() -> bool:
    return platform.libc_ver()[0] == "glibc"


def _precision(train: Train, device: str) -> tuple[str, str]:
    import torch

    if device == "cuda":
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        if train.precision == "bf16" and not bf16:
            raise MachineError(
                f"train.precision is bf16, which {torch.cuda.get_device_name()} lacks.",
                "Set train.precision to fp32 or auto.",
            )
    else:
        bf16 = bool({"amx_bf16", "avx512_bf16"} & processor_flags())
    if train.precision != "auto":
        return train.precision, "the recipe says so"
    if bf16:
        return "bf16", "the processor multiplies bf16 matrices faster than fp32"
    return "fp32", "the processor has no bf16 matrix instructions"


def _attention(train: Train, device: str) -> tuple[str, str]:
    if train.attention != "auto":
        return train.attention, "the recipe says so"
    if device == "cpu" and train.seq_len <= LONGEST_SEQUENCE:
        return "matmul", f"faster backward on a CPU up to {LONGEST_SEQUENCE} tokens"
    return "model", "the model's own kernel"


def _compile(train: Train, device: str, planned_flops: float, processes: int) -> tuple[bool, str]:
    if train.compile == "off":
        return False, "the recipe says so"
    if device == "cpu" and processes > 1:
        return False, "on a CPU the whole model is compiled, which several processes do not hold"
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        return False, "no C++ compiler on this machine"
    if train.compile == "on":
        return True, "the recipe says so"
    if device == "cpu" and planned_flops < COMPILE_PAYS_FLOPS:
        return False, f"{planned_flops:.1e} FLOPs end before compiling pays back"
    return True, "the training is long enough to pay for compiling"


def processor_flags() -> frozenset[str]:
    """Return the instruction sets of the first processor, if the system lists them."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return frozenset()
    for line in cpuinfo.read_text().splitlines():
        if line.startswith(("flags", "Features")):
            return frozenset(line.partition(":")[2].split())
    return frozenset()


def keep_freed_memory() -> None:
    """Have glibc keep freed memory, so that steps do not page-fault their logits in again.

    By default every tensor above 32 MB is mapped and unmapped at each use. The price: resident
    memory stays at its high-water mark. Takes effect for the whole process, for allocations that
    follow; with another C library nothing happens.
    """
    if _has_glibc():
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
