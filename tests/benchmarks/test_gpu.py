import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
if not BENCHMARKS.is_dir():
    pytest.skip("benchmarks/ is not part of this distribution", allow_module_level=True)


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import gpu

    return gpu


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989.5),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA A100-SXM4-40GB", 312.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA L40S", 362.05),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA H100 NVL", None),
        ("NVIDIA A10G", None),
    ],
)
def test_the_peak_is_that_of_the_very_card_or_unknown(gpu, name, teraflops):
    expected = None if teraflops is None else teraflops * 1e12
    assert gpu.peak_flops({"name": name}, None) == expected
    assert gpu.peak_flops({"name": name}, 155.0) == 155e12


@pytest.mark.parametrize(("gigabytes", "batch"), [(151, 8), (85, 8), (51, 2), (25, 1)])
def test_the_batch_leaves_room_for_weights_and_moments(gpu, gigabytes, batch):
    shape = gpu.GPU_SHAPES["openllama-3b"]
    assert gpu.first_batch(shape, gigabytes * 1e9).batch == batch
    assert gpu.first_batch(shape, None) == shape


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, BENCHMARKS / "gpu.py", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
    )


@pytest.mark.slow
def test_without_a_card_it_says_so_and_ends_with_4():
    done = run()
    assert done.returncode == 4
    assert done.stderr == ("no CUDA device: nothing was measured. Run it where there is one.\n")
    assert not done.stdout


@pytest.mark.slow
def test_the_whole_path_runs_on_a_processor_with_tiny_models():
    done = run("--device", "cpu", "--tiny")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("| a tiny")]
    assert [row.split("|")[2].strip() for row in rows] == ["inheritune", "Trainer"] * 2
    assert "not run" not in done.stdout
