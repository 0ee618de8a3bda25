"""Say in six lines what this machine is fit for, and how to get what is missing."""

import re
from collections.abc import Sequence

from inheritune.cli.doctor import Diagnosis
from inheritune.model_files.training_memory import BYTES_PER_PARAMETER
from inheritune.system.memory import training_memory

_EXTRA = re.compile(r"inheritune\[(\w+)\]")
# What each extra is for, short enough that no line of a terminal wraps.
_PURPOSES = {"data": "parquet", "eval": "tasks", "gguf": "GGUF", "trackers": "trackers"}
_HUB = ("HF_HOME", "HF_HUB_OFFLINE", "Hub login")
_DEVICE = ("device", "bf16", "cores", "C++ compiler")
_OTHER = ("C library", "text encoding", "free memory", "free disk")


def summarize(findings: Sequence[Diagnosis]) -> list[Diagnosis]:
    """Sum up the findings of `diagnose` in six lines; a failure takes its line."""
    named = {finding.name: finding for finding in findings}
    device = [named[name] for name in _DEVICE if name in named]
    hub = [finding for finding in findings if finding.name.startswith(("HF_", "Hub", "Hugging"))]
    taken = {*_HUB, *_DEVICE, *_OTHER, *(finding.name for finding in hub)}
    packages = [finding for finding in findings if finding.name not in taken]
    disk = named["free disk"]
    return [
        _line("software", packages, _versions(packages)),
        _line("device", device, ", ".join(_device_facts(named)), _first_hint(device)),
        _line("memory", [named["free memory"]], *_memory(named["free memory"])),
        _line("disk", [disk], f"{disk.value} free", "Each checkpoint takes 12 bytes a parameter."),
        _line("Hub", hub, _hub_access(named), _first_hint(hub)),
        _extras(packages),
    ]


def _line(name: str, parts: Sequence[Diagnosis], value: str, hint: str = "") -> Diagnosis:
    failed = [finding for finding in parts if not finding.ok]
    if not failed:
        return Diagnosis(name, value, True, hint)
    more = f" (and {len(failed) - 1} more: --all)" if len(failed) > 1 else ""
    return Diagnosis(name, f"{failed[0].name}: {failed[0].value}{more}", False, failed[0].hint)


def _versions(packages: Sequence[Diagnosis]) -> str:
    main = ("python", "torch", "transformers")
    return ", ".join(f"{p.name} {p.value}" for p in packages if p.name in main)


def _device_facts(named: dict[str, Diagnosis]) -> list[str]:
    bf16, cores = named.get("bf16"), named["cores"].value
    facts = [named["device"].value, f"{cores} core{'' if cores == '1' else 's'}"]
    return [*facts, *([f"bf16: {bf16.value}"] if bf16 else [])]


def _first_hint(parts: Sequence[Diagnosis]) -> str:
    return next((finding.hint for finding in parts if finding.hint), "")


def _memory(finding: Diagnosis) -> tuple[str, str]:
    size, is_on_gpu = training_memory()
    if size is None:
        return finding.value, ""
    most = size / BYTES_PER_PARAMETER
    parameters = f"{most / 1e9:.1f}B" if most >= 1e9 else f"{most / 1e6:.0f}M"
    trains = "GPU: trains" if is_on_gpu else "Trains"
    return f"{finding.value} free", f"{trains} up to {parameters} parameters, less activations."


def _hub_access(named: dict[str, Diagnosis]) -> str:
    if named.get("HF_HUB_OFFLINE", Diagnosis("", "")).value == "on":
        return "offline by HF_HUB_OFFLINE"
    is_logged_in = named.get("Hub login", Diagnosis("", "")).value == "yes"
    return "logged in" if is_logged_in else "public models only"


def _extras(packages: Sequence[Diagnosis]) -> Diagnosis:
    absent = {match[1] for package in packages for match in _EXTRA.finditer(package.hint)}
    names = [name for name in _PURPOSES if name in absent]
    there = [purpose for name, purpose in _PURPOSES.items() if name not in absent]
    if not names:
        return Diagnosis("extras", "all installed")
    hint = f'More: pip install "inheritune[{",".join(names)}]"'
    return Diagnosis("extras", ", ".join(there) or "none", True, hint)
