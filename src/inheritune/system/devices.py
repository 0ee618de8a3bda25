"""Know the peak speed of devices, and compute how long a training takes on them."""

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from inheritune.errors import RecipeError, escape
from inheritune.system.environment import usable_cores

# Model FLOPs utilization: the share of the peak that a well-tuned training of a dense model reaches
# on one GPU. A guess until `run` has measured it.
DEFAULT_MFU = 0.4


@dataclass(frozen=True)
class Device:
    """A model of GPU, or this machine's processor.

    Attributes:
        name: Name on the command line.
        peak_flops: FLOP/s of dense matrix products, without sparsity.
        precision: Precision of training: ``"bf16"``, or ``"fp32"`` where there is no bf16.
        memory_bytes: Memory of one device; None: unknown.
        title: Full name.
        link: Bytes per second to the other devices of its machine, in one direction; None: unknown.
    """

    name: str
    peak_flops: float
    precision: str
    memory_bytes: int | None
    title: str
    link: float | None = None


@dataclass(frozen=True)
class Speed:
    """The devices of a planned training, and the speed that is assumed.

    Attributes:
        device: Model of the devices.
        count: Number of devices.
        mfu: Assumed share of the peak, in (0, 1].
        rate: Dollars per hour and device; None: unknown.
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
        """Return time and cost of a number of floating-point operations."""
        hours = flops / (self.device.peak_flops * self.mfu * self.count) / 3600
        cost = None if self.rate is None else hours * self.count * self.rate
        return Price(hours, hours * self.count, cost)


@dataclass(frozen=True)
class Price:
    """Time and cost of a training.

    Attributes:
        hours: Wall-clock hours.
        device_hours: Hours of all devices together.
        dollars: Cost; None without a rate.
    """

    hours: float
    device_hours: float
    dollars: float | None


def _gpu(
    name: str, teraflops: float, gigabytes: int, title: str, precision: str = "bf16"
) -> Device:
    # NVLink and Infinity Fabric: half of the total of the data sheets; others by PCIe 4 x16.
    link = _LINKS.get(name, 32e9)
    return Device(name, teraflops * 1e12, precision, gigabytes * 10**9, title, link)


_LINKS = {
    "b200": 900e9,
    **dict.fromkeys(("h200", "h100"), 450e9),
    **dict.fromkeys(("a100", "a100-40gb"), 300e9),
    "h100-pcie": 64e9,
    "v100": 150e9,
    "mi300x": 448e9,
}


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


# Patterns of the names that nvidia-smi shows, without the maker's name.
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
    """Find a device by name; ``cpu`` is this machine's processor.

    Raises:
        RecipeError: The name is unknown.
    """
    key = name.strip().lower().replace("_", "-")
    if key == "cpu":
        return this_processor()
    if key not in DEVICES:
        raise RecipeError(
            f"unknown device {escape(repr(name), 60)}.",
            f"Choose among {', '.join([*DEVICES, 'cpu'])}.",
        )
    return DEVICES[key]


def peak_of(title: str) -> float | None:
    """Return the peak FLOP/s of a GPU by the name that its driver gives; None if it is unknown.

    Only exact names count: an NVL, Laptop, Ti or MIG part of the same name is slower.
    """
    for name, pattern in _TITLES.items():
        if re.fullmatch(pattern, title.removeprefix("NVIDIA ").removeprefix("Tesla ")):
            return DEVICES[name].peak_flops
    return None


def this_processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> Device:
    """Estimate the peak of this machine's cores from clock and instruction set.

    peak = cores * clock * 2 (fused multiply-adds per cycle) * 2 (operations) * fp32 lanes.
    Where the system tells neither, a clock of 2.5 GHz and registers of 128 bits are assumed.
    """
    cores, text = usable_cores(), ""
    with suppress(OSError):
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    flags = re.search(r"^(flags|Features)\s*:(.*)$", text, re.M)
    features = set(flags[2].split()) if flags else set()
    lanes = 16 if "avx512f" in features else 8 if "fma" in features else 4
    clocks = [float(mhz) for mhz in re.findall(r"^cpu MHz\s*:\s*([0-9.]+)$", text, re.M)]
    hertz = max(clocks, default=2500.0) * 1e6
    title = f"this machine: {cores} core{'s' * (cores > 1)} at {hertz / 1e9:.1f} GHz"
    return Device("cpu", cores * hertz * lanes * 2 * 2, "fp32", None, title)
