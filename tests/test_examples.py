"""The examples that start a run elsewhere: their syntax, and that they start it as torchrun can."""

import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from ruamel.yaml import YAML

EXAMPLES = Path(__file__).parent.parent / "examples"
LAUNCH = [  # options of torch.distributed.run, in the order of every example
    *("--nnodes", "--nproc-per-node", "--rdzv-backend", "--rdzv-endpoint", "--rdzv-id"),
    "--shutdown-timeout",
]


def documents(name: str) -> list[dict]:
    return list(YAML(typ="safe").load_all((EXAMPLES / name).read_text()))


def kubernetes_words() -> list[str]:
    _, job = documents("kubernetes.yaml")
    container = job["spec"]["template"]["spec"]["containers"][0]
    return [*container["command"], *container["args"]]


def shell_text(name: str) -> str:
    if name.endswith(".sbatch"):
        return (EXAMPLES / name).read_text()
    (task,) = documents(name)
    return task["setup"] + task["run"]


@pytest.mark.parametrize("name", ["slurm.sbatch", "skypilot.yaml"])
def test_the_shell_of_an_example_is_bash(name: str) -> None:
    checked = subprocess.run(["bash", "-n"], input=shell_text(name), text=True, capture_output=True)
    assert (checked.returncode, checked.stderr) == (0, "")


@pytest.mark.parametrize("name", ["slurm.sbatch", "skypilot.yaml", "kubernetes.yaml"])
def test_every_cluster_is_started_by_the_same_options_of_torchrun(name: str) -> None:
    from torch.distributed.run import get_args_parser

    text = (EXAMPLES / name).read_text()
    words = kubernetes_words() if name == "kubernetes.yaml" else text.split()
    words = words[words.index("torch.distributed.run") + 1 :] if "-m" in words else words
    options = [word.partition("=")[0] for word in words[: words.index("inheritune")]]
    options = [option for option in options if option.startswith("--")]
    assert options[: len(LAUNCH)] == LAUNCH
    known = {option for action in get_args_parser()._actions for option in action.option_strings}
    assert set(options) <= known
    assert words[words.index("inheritune") - 1 :][:3] == ["-m", "inheritune", "run"]


def test_the_kubernetes_job_is_as_many_pods_as_torchrun_waits_for() -> None:
    service, job = documents("kubernetes.yaml")
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    words = dict(word.split("=") for word in kubernetes_words() if word.startswith("--"))
    assert spec["completionMode"] == "Indexed"
    assert spec["completions"] == spec["parallelism"] == int(words["--nnodes"])
    gpus = pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]
    assert gpus == int(words["--nproc-per-node"])
    # An indexed pod is NAME-INDEX in the subdomain of a service without an address.
    assert service["spec"]["clusterIP"] == "None"
    assert pod["subdomain"] == service["metadata"]["name"]
    host = f"{job['metadata']['name']}-0.{service['metadata']['name']}"
    assert words["--rdzv-endpoint"] == f"{host}:29500"
    assert pod["terminationGracePeriodSeconds"] > int(words["--shutdown-timeout"])
    assert {m["name"] for m in pod["containers"][0]["volumeMounts"]} == {
        volume["name"] for volume in pod["volumes"]
    }


def test_slurm_queues_a_job_again_after_a_limit_and_after_a_preemption() -> None:
    text = (EXAMPLES / "slurm.sbatch").read_text()
    assert {"--signal=B:USR1@600", "--requeue"} <= set(text.split())
    assert re.findall(r"^trap .* (USR1|TERM)$", text, re.MULTILINE) == ["USR1", "TERM"]


def test_the_job_of_the_hub_states_what_it_needs_and_stops_in_time() -> None:
    path = EXAMPLES / "hf_job.py"
    header = re.match(r"# /// script\n((?:# .*\n)+?)# ///\n", path.read_text())
    needs = tomllib.loads("".join(line[2:] for line in header[1].splitlines(keepends=True)))
    assert [name.partition(">")[0] for name in needs["dependencies"]] == [
        *("inheritune", "huggingface_hub")
    ]
    spec = importlib.util.spec_from_file_location("hf_job", path)
    job = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(job)
    assert job.command(Path("r.yaml"), 4)[1:] == [
        *("-m", "inheritune", "run", "r.yaml", "--processes", "4")
    ]
    stops = "trap 'exit 75' TERM; while :; do sleep 0.01; done"
    assert job.run(["bash", "-c", stops], 0.3) == 75
    assert job.run([sys.executable, "-c", "raise SystemExit(6)"], 60) == 6
