"""Two machines as two network namespaces with a cable between them, started by torchrun."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

RECIPE = """
name: tiny
reference: {{model: {model}}}
data: {{source: {text}, val_fraction: 0.2, allow_repeat: true}}
train:
  {{tokens: {tokens}, seq_len: 16, batch_tokens: 128, micro_batch: 4, learning_rate: 1.0e-3,
    min_learning_rate: 1.0e-4, precision: fp32, eval_every: 1M, save_minutes: 1.0e-9,
    timeout_minutes: 0.5, parallel: shard}}
grow: {{add: 0}}
analyze: null
evaluate: {{gains: false}}
variants: {{inherit: {{start: inherit}}}}
"""
STEPS = 60
HEAD = "10.213.77.1"


class Machines:
    """Two network namespaces, joined by a pair of virtual Ethernet devices."""

    def __init__(self) -> None:
        self.names = [f"inheritune-{os.getpid()}-{side}" for side in "ab"]
        self.cables = [f"inh{os.getpid() % 10**7}{side}" for side in "ab"]  # at most 15 letters

    def connect(self) -> None:
        for name in self.names:
            ip("netns", "add", name)
        ip("link", "add", self.cables[0], "type", "veth", "peer", "name", self.cables[1])
        for number, (name, cable) in enumerate(zip(self.names, self.cables, strict=True), 1):
            ip("link", "set", cable, "netns", name)
            ip("-n", name, "address", "add", f"10.213.77.{number}/24", "dev", cable)
            for device in ("lo", cable):
                ip("-n", name, "link", "set", device, "up")

    def remove(self) -> None:
        for name in self.names:
            with suppress(subprocess.CalledProcessError):
                ip("netns", "delete", name)

    def pull_the_cable(self) -> None:
        ip("-n", self.names[1], "link", "set", self.cables[1], "down")

    def plug_it_in(self) -> None:
        ip("-n", self.names[1], "link", "set", self.cables[1], "up")

    def start(self, number: int, recipe: Path, log: Path) -> subprocess.Popen[bytes]:
        """Start one of the two launchers, with the options of the files in examples/."""
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2"]
        torchrun += ["--nproc-per-node=1", "--rdzv-backend=c10d", f"--rdzv-endpoint={HEAD}:29500"]
        # Namespaces share a host name, by which torchrun would find the machine of the endpoint.
        torchrun += ["--rdzv-id=tiny", f"--rdzv-conf=is_host={number == 0}"]
        torchrun += [f"--local-addr=10.213.77.{number + 1}"]
        command = ["-m", "inheritune", "run", str(recipe), "--runs", str(recipe.parent)]
        return subprocess.Popen(
            ["ip", "netns", "exec", self.names[number], *torchrun, *command],
            env=os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": self.cables[number]},
            stdout=subprocess.DEVNULL,
            stderr=log.open("ab"),
            start_new_session=True,
        )


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@pytest.fixture
def machines() -> Iterator[Machines]:
    if shutil.which("ip") is None:
        pytest.skip("there is no command ip (iproute2)")
    made = Machines()
    try:
        made.connect()
        yield made
    except subprocess.CalledProcessError as error:
        pytest.skip(f"network namespaces are not allowed here: {error.stderr.strip()}")
    finally:
        made.remove()


def steps_of(run: Path) -> list[int]:
    rows = [row for path in run.rglob("metrics.jsonl") for row in path.read_text().splitlines()]
    found = [json.loads(row) for row in rows if row.endswith("}")]
    return [row["step"] for row in found if "loss" in row]


def record(run: Path) -> dict:
    return json.loads((run / "run.json").read_text())


def wait_for_steps(run: Path, count: int, launchers: list[subprocess.Popen[bytes]]) -> None:
    until = time.monotonic() + 120
    while len(steps_of(run)) < count:
        assert time.monotonic() < until
        assert all(launcher.poll() is None for launcher in launchers)
        time.sleep(0.02)


def end(launchers: list[subprocess.Popen[bytes]]) -> None:
    for launcher in launchers:
        with suppress(ProcessLookupError):
            os.killpg(launcher.pid, signal.SIGKILL)
        launcher.wait()


@pytest.mark.slow
def test_a_run_on_two_machines_survives_a_cable_that_is_pulled(
    machines: Machines, tiny_reference: Path, tiny_text: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.yaml"
    fields = {"model": tiny_reference, "text": tiny_text, "tokens": 128 * STEPS}
    recipe.write_text(RECIPE.format(**fields))
    logs = [tmp_path / "a.log", tmp_path / "b.log"]
    run = tmp_path / "tiny"

    # --- the cable is pulled in the middle of a training: both workers end by themselves ---
    launchers = [machines.start(number, recipe, logs[number]) for number in (0, 1)]
    try:
        wait_for_steps(run, 5, launchers)
        machines.pull_the_cable()
        cut = time.monotonic()
        while record(run)["status"] == "running":
            assert time.monotonic() - cut < 120
            time.sleep(0.1)
        assert launchers[0].wait(timeout=60) == 1  # torchrun's, whatever a worker ends with
    finally:
        end(launchers)  # that of the machine that was cut off looks for the other for minutes
    assert record(run)["exit_code"] == 4
    reached = steps_of(run)[-1]
    assert 5 <= reached < STEPS
    assert all("lost the others" in path.read_text() for path in logs)

    # --- with the cable back, the same command goes on ---
    machines.plug_it_in()
    launchers = [machines.start(number, recipe, logs[number]) for number in (0, 1)]
    try:
        assert [launcher.wait(timeout=240) for launcher in launchers] == [0, 0], logs[0].read_text()
    finally:
        end(launchers)
    assert record(run)["status"] == "done"
    assert steps_of(run) == [*range(1, STEPS + 1)]
    assert "continued from step" in (run / "log.txt").read_text()
