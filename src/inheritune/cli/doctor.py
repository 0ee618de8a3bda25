"""Check what a run needs of this machine: versions, device, compiler, memory, disk, Hub access."""

import importlib.metadata
import locale
import os
import platform
import re
import shutil
import sys
import sysconfig
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from inheritune import __version__
from inheritune.system.environment import usable_cores
from inheritune.system.memory import free_memory

if TYPE_CHECKING:
    from inheritune.reporting.table import Table


OLDEST_PYTHON = (3, 11)
# The demo needs a third of this disk space, and about this much memory.
LEAST_DISK_BYTES = 10**9
LEAST_MEMORY_BYTES = 2 * 10**9

# `name>=version; extra == "..."`, as pyproject.toml writes its requirements.
_REQUIREMENT = re.compile(
    r"(?P<name>[\w.-]+)(?:\[[^]]*\])?\s*(?:>=(?P<oldest>[\w.]+))?"
    r"\s*(?:;.*extra\s*==\s*['\"](?P<extra>[\w-]+)['\"].*)?"
)
_DEVELOPMENT = re.compile(r"extra\s*==\s*['\"]dev['\"]")


@dataclass(frozen=True)
class Diagnosis:
    """Result of one check."""

    name: str  # what was checked, such as "free disk"
    value: str  # the result, for people
    ok: bool = True  # false if a run would fail here
    hint: str = ""  # what to do about it, or what is slower or missing; usually empty


def diagnose() -> list[Diagnosis]:
    """Check everything that a run depends on, without changing anything or using the network."""
    return [
        _python(),
        *_packages(),
        *_device(),
        _compiler(),
        _c_library(),
        _cores(),
        _memory(),
        _disk(),
        *_hub(),
        _encoding(),
    ]


def findings_table(findings: Sequence[Diagnosis]) -> "Table":
    """Lay findings out for a terminal, hints beside the values."""
    from inheritune.reporting.table import Column, Table

    values = [
        ["ok" if finding.ok else "no", finding.name, f"{finding.value}  {finding.hint}".rstrip()]
        for finding in findings
    ]
    return Table("doctor", [Column("ok"), Column("check"), Column("result")], values)


def _python() -> Diagnosis:
    oldest = ".".join(map(str, OLDEST_PYTHON))
    hint = "" if sys.version_info >= OLDEST_PYTHON else f"Install Python {oldest} or newer."
    return Diagnosis("python", platform.python_version(), not hint, hint)


def _packages() -> Iterator[Diagnosis]:
    yield Diagnosis("inheritune", __version__)
    try:
        requirements = importlib.metadata.requires("inheritune") or []
    except importlib.metadata.PackageNotFoundError:
        yield Diagnosis(
            "packages", "not checked", True, "inheritune is not installed: pip install -e ."
        )
        return
    # Reversed, so that a package in two extras is reported with the extra that is listed first.
    packages = [_package(text) for text in reversed(requirements) if not _DEVELOPMENT.search(text)]
    unique = {finding.name: finding for finding in packages}
    # torch and transformers first, since they decide most; then by name.
    yield from sorted(
        unique.values(), key=lambda f: (f.name not in {"torch", "transformers"}, f.name)
    )


def _package(requirement: str) -> Diagnosis:
    match = _REQUIREMENT.fullmatch(requirement.strip())
    assert match, requirement  # from our own pyproject.toml
    name, oldest, extra = match["name"], match["oldest"] or "0", match["extra"]
    install = f'Install it: pip install "inheritune[{extra}]"' if extra else ""
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        if extra:
            return Diagnosis(name, "not installed", True, f"Optional. {install}")
        return Diagnosis(
            name, "not installed", False, f'Install it: pip install "{name}>={oldest}"'
        )
    if _release(version) < _release(oldest):
        return Diagnosis(name, version, False, f'Too old: pip install "{name}>={oldest}"')
    return Diagnosis(name, version)


def _release(version: str) -> tuple[int, ...]:
    """Extract the numbers of a version: (2, 13) from ``2.13.0+cpu``, without trailing zeros."""
    numbers = re.match(r"\d+(\.\d+)*", version)
    parts = [int(part) for part in numbers[0].split(".")] if numbers else []
    while parts and parts[-1] == 0:
        parts.pop()
    return tuple(parts)


def _device() -> Iterator[Diagnosis]:
    try:
        with warnings.catch_warnings(record=True) as caught:  # torch warns about old drivers
            warnings.simplefilter("always")
            import torch

            has_cuda = torch.cuda.is_available()
    except Exception as error:  # a broken installation can fail in any way
        yield Diagnosis("device", f"torch does not import: {error}", False, "Reinstall torch.")
        return
    if has_cuda:
        yield from _gpu()
        return
    hint = ""
    if Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi"):
        reason = str(caught[0].message).splitlines()[0] if caught else "this torch is for CPUs only"
        hint = f"There seems to be an NVIDIA GPU, but torch cannot use it: {reason}"
    elif torch.backends.mps.is_available():
        hint = "The GPU of this machine (mps) is not used: training needs CUDA, or runs on the CPU."
    yield Diagnosis("device", f"cpu ({platform.machine()})", True, hint)
    yield _processor_bf16()


def _gpu() -> Iterator[Diagnosis]:
    import torch

    try:
        properties = torch.cuda.get_device_properties(0)
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    except RuntimeError as error:
        hint = 'Choose another GPU, or none: CUDA_VISIBLE_DEVICES="".'
        yield Diagnosis("device", f"cuda fails: {str(error).splitlines()[0]}", False, hint)
        return
    count = torch.cuda.device_count()
    more = f", one of {count}" if count > 1 else ""
    memory = _size(properties.total_memory)
    yield Diagnosis("device", f"cuda ({properties.name}, {memory}{more})")
    yield Diagnosis("bf16", "yes" if bf16 else "no", True, "" if bf16 else "Training runs in fp32.")


def _processor_bf16() -> Diagnosis:
    from inheritune.training.hardware import processor_flags

    flags = processor_flags()
    for flag, name in (("amx_bf16", "AMX"), ("avx512_bf16", "AVX-512")):
        if flag in flags:
            return Diagnosis("bf16", f"yes ({name})")
    hint = "In fp32: bf16 is 2-3x as fast."
    return Diagnosis("bf16", "no" if flags else "unknown on this system", True, hint)


def _compiler() -> Diagnosis:
    compiler = next(filter(shutil.which, ("g++", "clang++")), None)
    slower = "Long trainings run without torch.compile, up to 1.3 times slower;"
    if compiler is None:
        return Diagnosis("C++ compiler", "none", True, f"{slower} install g++ or clang++.")
    # Compiled kernels are Python extensions.
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").exists():
        hint = f"{slower} install Python's headers (python3-dev)."
        return Diagnosis("C++ compiler", f"{compiler}, without Python.h", True, hint)
    return Diagnosis("C++ compiler", compiler)


def _c_library() -> Diagnosis:
    name, version = platform.libc_ver()
    hint = "" if name == "glibc" else "train.keep_large_blocks needs glibc; it stays off."
    return Diagnosis("C library", f"{name} {version}".strip() or "not glibc", True, hint)


def _cores() -> Diagnosis:
    # Containers and schedulers may grant a process less than the machine has.
    usable = usable_cores()
    quota = _first_line("/sys/fs/cgroup/cpu.max").split()
    if len(quota) == 2 and quota[0].isdecimal():
        granted = int(quota[0]) / int(quota[1])
        if granted < usable:
            return Diagnosis("cores", f"{granted:g} of {usable} granted")
    return Diagnosis("cores", str(usable))


def _memory() -> Diagnosis:
    free = free_memory()
    if free is None:
        return Diagnosis("free memory", "unknown on this system")
    hint = f"The demo needs {_size(LEAST_MEMORY_BYTES)}." if free < LEAST_MEMORY_BYTES else ""
    return Diagnosis("free memory", _size(free), not hint, hint)


def _disk() -> Diagnosis:
    try:
        free = shutil.disk_usage(Path.cwd()).free
        writable = os.access(Path.cwd(), os.W_OK)
    except OSError as error:
        hint = "Change to a directory that exists."
        return Diagnosis("free disk", f"no working directory: {error.strerror}", False, hint)
    if not writable:
        hint = "Runs are written under the working directory: change to one that you can write to."
        return Diagnosis("free disk", "the working directory is read-only", False, hint)
    hint = f"The demo needs {_size(LEAST_DISK_BYTES)}." if free < LEAST_DISK_BYTES else ""
    return Diagnosis("free disk", _size(free), not hint, hint)


def _hub() -> Iterator[Diagnosis]:
    try:
        from huggingface_hub import constants, get_token
    except ImportError as error:
        yield Diagnosis("Hugging Face Hub", f"does not import: {error}", False, "Reinstall it.")
        return
    home = Path(constants.HF_HOME)
    writable = os.access(_nearest_existing(home), os.W_OK)
    hint = "" if writable else "Downloads need it: set HF_HOME to a writable directory."
    yield Diagnosis("HF_HOME", f"{home}{'' if writable else ' (not writable)'}", writable, hint)
    offline = constants.HF_HUB_OFFLINE
    hint = "Only local directories and earlier downloads can be used." if offline else ""
    yield Diagnosis("HF_HUB_OFFLINE", "on" if offline else "off", True, hint)
    try:
        logged_in = get_token() is not None  # the token itself is never shown
    except OSError:
        logged_in = False
    hint = "" if logged_in else "For gated or private models: hf auth login"
    yield Diagnosis("Hub login", "yes" if logged_in else "no", True, hint)


def _encoding() -> Diagnosis:
    # Of the stream, which PYTHONIOENCODING may have set otherwise than the locale.
    encoding = getattr(sys.stdout, "encoding", None) or locale.getpreferredencoding(False)
    utf8 = encoding.lower().replace("-", "") == "utf8"
    hint = "" if utf8 else "Other characters are spelt, or ?: set PYTHONIOENCODING=utf-8."
    return Diagnosis("text encoding", encoding, True, hint)


def _nearest_existing(path: Path) -> Path:
    return next(p for p in (path, *path.absolute().parents) if p.exists())


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB"


def _first_line(path: str) -> str:
    return _text(path).partition("\n")[0].strip()


def _text(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
