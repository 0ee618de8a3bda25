"""How fast devices multiply matrices at best, by their makers, and what a training takes there."""

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from inheritune.errors import RecipeError, escape

__all__ = [
    "DEFAULT_MFU",
    "DEVICES",
    "Device",
    "Price",
    "Speed",
    "choose_device",
    "peak_of",
    "this_processor",
]

# Of the peak, what a well-set training of a dense model reaches on one GPU. A guess until `run`
# has measured it.
DEFAULT_MFU = 0.4


@dataclass(frozen=True)
class Device:
    """A kind of device.

    Attributes:
        name: As people type it.
        peak_flops: Per second, of dense matrix products, without sparsity.
        precision: In which training would run: ``"bf16"``, or ``"fp32"`` where there is no bf16.
        memory_bytes: Of one device; None: unknown.
        title: In full.
    """

    name: str
    peak_flops: float
    precision: str
    memory_bytes: int | None
    title: str


@dataclass(frozen=True)
class Speed:
    """What a training runs on.

    Attributes:
        device: Which kind.
        count: How many.
        mfu: Share of the peak that is assumed to be reached.
        rate: Dollars for an hour of one device; None: unknown.
    """

    device: Device
    count: int = 1
    mfu: float = DEFAULT_MFU
    rate: float | None = None

    def __post_init__(self) -> None:
        if self.count < 1:
            raise RecipeError(f"--devices is {self.count}.", "Name at least 1.")
        if not 0 < self.mfu <= 1:
            raise RecipeError(f"--mfu is {self.mfu}.", "Name a share above 0 and up to 1.")
        if self.rate is not None and not 0 <= self.rate < float("inf"):
            raise RecipeError(f"--rate is {self.rate}.", "Name dollars per hour of one device.")

    def price(self, flops: float) -> "Price":
        """What so many operations take."""
        hours = flops / (self.device.peak_flops * self.mfu * self.count) / 3600
        cost = None if self.rate is None else hours * self.count * self.rate
        return Price(hours, hours * self.count, cost)


@dataclass(frozen=True)
class Price:
    """What a training takes.

    Attributes:
        hours: From beginning to end.
        device_hours: Of all devices together.
        dollars: None where no rate was named.
    """

    hours: float
    device_hours: float
    dollars: float | None


def _gpu(
    name: str, teraflops: float, gigabytes: int, title: str, precision: str = "bf16"
) -> Device:
    return Device(name, teraflops * 1e12, precision, gigabytes * 10**9, title)


# Dense, with fp32 accumulation. Data sheets print twice as much where they count sparsity:
# B200: NVIDIA DGX B200 (72 PFLOP/s of FP8 sparse for 8). H200, H100: "1,979 teraFLOPS with
# sparsity"; H100 PCIe 1,513. A100: 312. L40S: 362.05 | 733 with sparsity. L4: 242 with sparsity.
# A10: 125. RTX 4090: Ada GPU architecture, appendix A. RTX 3090: GA102 GPU architecture, table 3
# (BF16 with FP32 accumulate). V100, T4: fp32 of their data sheets, as they have no bf16.
# MI300X: AMD Instinct MI300X, 1,307.4.
DEVICES = {
    device.name: device
    for device in (
        _gpu("b200", 2250.0, 180, "NVIDIA B200 SXM"),
        _gpu("h200", 989.5, 141, "NVIDIA H200 SXM"),
        _gpu("h100", 989.5, 80, "NVIDIA H100 SXM"),
        _gpu("h100-pcie", 756.5, 80, "NVIDIA H100 PCIe"),
        _gpu("a100", 312.0, 80, "NVIDIA A100 80GB"),
        _gpu("a100-40gb", 312.0, 40, "NVIDIA A100 40GB"),
        _gpu("l40s", 362.05, 48, "NVIDIA L40S"),
        _gpu("l4", 121.0, 24, "NVIDIA L4"),
        _gpu("a10", 125.0, 24, "NVIDIA A10"),
        _gpu("rtx4090", 165.2, 24, "NVIDIA GeForce RTX 4090"),
        _gpu("rtx3090", 71.0, 24, "NVIDIA GeForce RTX 3090"),
        _gpu("v100", 15.7, 32, "NVIDIA V100 SXM2", "fp32"),
        _gpu("t4", 8.1, 16, "NVIDIA T4", "fp32"),
        _gpu("mi300x", 1307.4, 192, "AMD Instinct MI300X"),
    )
}


# As nvidia-smi has them, without the maker's name.
_TITLES = {
    "b200": "B200",
    "h200": "H200",
    "h100": "H100 80GB HBM3",
    "h100-pcie": "H100 PCIe",
    "a100": "A100-SXM4-80GB|A100 80GB PCIe",
    "a100-40gb": "A100-(SXM4|PCIE)-40GB",
    "l40s": "L40S",
    "l4": "L4",
    "a10": "A10",
    "rtx4090": "GeForce RTX 4090",
    "rtx3090": "GeForce RTX 3090",
    "v100": "V100-SXM2-(16|32)GB",
    "t4": "T4",
    "mi300x": "AMD Instinct MI300X.*",
}


def choose_device(name: str) -> Device:
    """The device of a name; ``cpu`` is this machine's.

    Raises:
        RecipeError: There is none of this name.
    """
    wanted = name.strip().lower().replace("_", "-")
    if wanted == "cpu":
        return this_processor()
    if wanted not in DEVICES:
        raise RecipeError(
            f"there is no device {escape(repr(name), 60)}.",
            f"Choose among {', '.join([*DEVICES, 'cpu'])}.",
        )
    return DEVICES[wanted]


def peak_of(title: str) -> float | None:
    """The peak of a GPU by the name that its driver gives it; None where it is not known.

    Only names that leave no doubt: an NVL, Laptop, Ti or MIG part of the same name is slower.
    """
    for name, pattern in _TITLES.items():
        if re.fullmatch(pattern, title.removeprefix("NVIDIA ").removeprefix("Tesla ")):
            return DEVICES[name].peak_flops
    return None


def this_processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> Device:
    """This machine's cores, by what their instruction set can do in a cycle.

    fp32: two fused multiply-adds of the widest registers in each cycle. Where neither clock nor
    registers are said, 2.5 GHz and 128 bits.
    """
    cores, text = len(_usable_cores()), ""
    with suppress(OSError):
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    flags = re.search(r"^(flags|Features)\s*:(.*)$", text, re.M)
    known = set(flags[2].split()) if flags else set()
    lanes = 16 if "avx512f" in known else 8 if "fma" in known else 4
    clocks = [float(mhz) for mhz in re.findall(r"^cpu MHz\s*:\s*([0-9.]+)$", text, re.M)]
    hertz = max(clocks, default=2500.0) * 1e6
    title = f"this machine: {cores} core{'s' * (cores > 1)} at {hertz / 1e9:.1f} GHz"
    return Device("cpu", cores * hertz * lanes * 2 * 2, "fp32", None, title)


def _usable_cores() -> range:
    if hasattr(os, "sched_getaffinity"):
        return range(len(os.sched_getaffinity(0)))
    return range(os.cpu_count() or 1)
