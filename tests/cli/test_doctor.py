import importlib.metadata
import io
import json
import platform
import shutil
import sys
from collections import namedtuple
from functools import partial
from pathlib import Path

import pytest
from typer.testing import CliRunner

from inheritune import __version__
from inheritune.cli import doctor, fitness
from inheritune.cli.app import app
from inheritune.cli.doctor import Diagnosis, diagnose
from inheritune.cli.fitness import summarize

TOKEN = "hf_" + "x" * 34


def finding(name: str) -> Diagnosis:
    return next(f for f in diagnose() if f.name == name)


def test_everything_a_run_depends_on_is_looked_at():
    names = [f.name for f in diagnose()]
    assert names[:4] == ["python", "inheritune", "torch", "transformers"]
    assert {"device", "C++ compiler", "C library", "cores", "free memory", "free disk"} <= {*names}
    assert {"HF_HOME", "HF_HUB_OFFLINE", "Hub login", "text encoding"} <= {*names}
    assert len(names) == len(set(names))


def test_every_finding_has_a_value_and_every_failure_a_way_out():
    assert all(f.value for f in diagnose())
    assert all(f.hint for f in diagnose() if not f.ok)


def test_versions_are_those_that_are_installed():
    assert finding("python") == Diagnosis("python", platform.python_version())
    assert finding("inheritune") == Diagnosis("inheritune", __version__)
    assert finding("numpy") == Diagnosis("numpy", importlib.metadata.version("numpy"))


def test_tools_of_development_are_not_asked_of_users():
    assert not {"ruff", "mypy", "pytest"} & {f.name for f in diagnose()}


def test_an_old_python_is_named(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 10, 4))
    assert not finding("python").ok
    assert finding("python").hint == "Install Python 3.11 or newer."


@pytest.mark.parametrize("missing", ["torch", "wandb"])
def test_only_a_missing_required_package_fails(monkeypatch, missing):
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name == missing:
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert finding(missing).value == "not installed"
    assert finding(missing).ok == (missing == "wandb")
    assert "pip install" in finding(missing).hint


def test_a_package_below_its_minimum_fails(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.0.1")
    torch = finding("torch")
    assert (torch.value, torch.ok) == ("0.0.1", False)
    assert torch.hint == 'Too old: pip install "torch>=2.13"'


@pytest.mark.parametrize(
    ("version", "release"),
    [("2.13.0+cpu", (2, 13)), ("2.13.1rc1", (2, 13, 1)), ("10.0", (10,)), ("unknown", ())],
)
def test_versions_compare_by_their_numbers(version, release):
    assert doctor._release(version) == release


def test_a_torch_that_does_not_import_is_one_failed_finding(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # `import torch` now raises ImportError
    device = finding("device")
    assert not device.ok
    assert device.value.startswith("torch does not import: ")


@pytest.mark.parametrize(
    ("flags", "value"),
    [
        ({"amx_bf16", "avx512_bf16"}, "yes (AMX)"),
        ({"avx512_bf16"}, "yes (AVX-512)"),
        ({"sse2"}, "no"),
        (set(), "unknown on this system"),
    ],
)
def test_bf16_is_read_from_the_processor(monkeypatch, flags, value):
    from inheritune.training import hardware as settings

    monkeypatch.setattr(settings, "processor_flags", lambda: frozenset(flags))
    found = doctor._processor_bf16()
    assert found.value == value
    assert found.ok
    assert bool(found.hint) == (not value.startswith("yes"))


def test_a_missing_compiler_does_not_fail(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert finding("C++ compiler").value == "none"
    assert finding("C++ compiler").ok


def test_a_full_disk_fails(monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 10**12, 10**8))
    assert finding("free disk") == Diagnosis("free disk", "0.1 GB", False, "The demo needs 1.0 GB.")


def test_a_working_directory_that_is_gone_fails(monkeypatch, tmp_path):
    def gone() -> Path:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(Path, "cwd", gone)
    found = doctor._disk()
    assert not found.ok
    assert found.value == "no working directory: No such file or directory"


@pytest.mark.parametrize(
    ("available_kb", "limit", "used", "free_gb"),
    [(8_000_000, "max", "1", "8.2 GB"), (8_000_000, "3000000000", "1000000000", "2.5 GB")],
)
def test_a_container_grants_less_memory_than_the_machine_has(
    monkeypatch, available_kb, limit, used, free_gb
):
    texts = {
        "/proc/meminfo": f"MemTotal: 9 kB\nMemAvailable:   {available_kb} kB\n",
        "/sys/fs/cgroup/memory.max": f"{limit}\n",
        "/sys/fs/cgroup/memory.current": f"{used}\n",
        "/sys/fs/cgroup/memory.stat": "anon 5\ninactive_file 500000000\n",
    }
    monkeypatch.setattr(Path, "read_text", lambda self: texts[str(self)])
    assert doctor._memory() == Diagnosis("free memory", free_gb)


@pytest.mark.parametrize(
    ("quota", "value"), [("max 100000", "4"), ("150000 100000", "1.5 of 4 granted"), ("", "4")]
)
def test_a_container_grants_fewer_cores_than_the_machine_has(monkeypatch, quota, value):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)
    monkeypatch.setattr(doctor, "_text", lambda path: quota)
    assert doctor._cores().value == value


def test_a_token_is_seen_and_never_shown(monkeypatch):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: TOKEN)
    assert finding("Hub login") == Diagnosis("Hub login", "yes")
    assert TOKEN not in repr(diagnose())
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert finding("Hub login").value == "no"
    assert finding("Hub login").ok


def test_a_cache_that_cannot_be_written_fails(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "new" / "cache"))
    assert finding("HF_HOME").ok
    assert not (tmp_path / "new").exists()
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert not finding("HF_HOME").ok


def test_offline_mode_is_reported(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert finding("HF_HUB_OFFLINE").value == "on"
    assert finding("HF_HUB_OFFLINE").ok


def test_another_encoding_of_stdout_than_utf_8_is_hinted_at(monkeypatch):
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), "ascii"))
    found = finding("text encoding")
    assert (found.value, found.ok) == ("ascii", True)
    assert "PYTHONIOENCODING=utf-8" in found.hint


# -- six lines


def test_the_summary_has_six_lines_each_with_a_value():
    lines = summarize(diagnose())
    names = [line.name for line in lines]
    assert names == ["software", "device", "memory", "disk", "Hub", "extras"]
    assert all(line.value for line in lines)
    assert f"torch {importlib.metadata.version('torch')}" in lines[0].value


def test_a_failure_takes_its_line_with_its_way_out(monkeypatch):
    findings = [f for f in diagnose() if f.name not in {"numpy", "free disk"}]
    findings += [Diagnosis("numpy", "not installed", False, "Install it.")]
    findings += [Diagnosis("free disk", "0.1 GB", False, "The demo needs 1.0 GB.")]
    software, _, _, disk, *_ = summarize(findings)
    assert software == Diagnosis("software", "numpy: not installed", False, "Install it.")
    assert disk == Diagnosis("disk", "free disk: 0.1 GB", False, "The demo needs 1.0 GB.")


def test_missing_extras_are_one_command(monkeypatch):
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name in {"wandb", "lm-eval"}:
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name) if name not in {"mlflow", "trackio"} else "9"

    monkeypatch.setattr(importlib.metadata, "version", version)
    extras = summarize(diagnose())[-1]
    assert extras.ok and extras.hint.endswith('pip install "inheritune[eval,trackers]"')


def test_memory_is_told_in_parameters(monkeypatch):
    monkeypatch.setattr(fitness, "training_memory", lambda: (8 * 10**9, False))
    assert summarize(diagnose())[2].hint.startswith("Trains up to 500M parameters, less")
    monkeypatch.setattr(fitness, "training_memory", lambda: (80 * 10**9, True))
    assert summarize(diagnose())[2].hint.startswith("GPU: trains up to 5.0B parameters")


def test_doctor_prints_six_lines_or_all_and_the_same_json(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    run = partial(CliRunner().invoke, app)
    six, every = run(["doctor"]), run(["doctor", "--all"])
    rows = [line for line in six.stdout.splitlines() if line.startswith(("ok  ", "no  "))]
    assert len(rows) == 1 + 6  # the first heads the table
    assert len(six.stdout.splitlines()) == 1 + 6  # none wraps
    assert "xxhash" in every.stdout and "xxhash" not in six.stdout
    assert json.loads(run(["doctor", "--json"]).stdout)[0]["name"] == "python"
