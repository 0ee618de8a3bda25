"""Several real processes, over gloo, against one."""

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import ModuleType

import pytest
import torch

from inheritune.data.tokens import TokenDirectory
from inheritune.errors import RecipeError
from inheritune.model_files.training_memory import Layout, TrainedModel
from inheritune.planning.cluster import Traffic
from inheritune.recipe.training import Train
from inheritune.system.processes import Processes
from inheritune.training.checkpoint import (
    Position,
    load_newest,
    load_weights,
)
from inheritune.training.fsdp import layer_modules, my_share
from inheritune.training.models import load_model
from inheritune.training.sharded_safetensors import SavedTensors
from inheritune.training.training_inputs import TrainingInputs

SCRIPT = Path(__file__).with_name("group_work.py")


def work_module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("group_work", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


WORK = work_module()


def in_group(
    names: str,
    folder: Path,
    tokens: TokenDirectory,
    size: int = 2,
    nodes: int = 1,
    limit_s: float = 300,
    **more: str,
) -> list[int]:
    """Have real processes do something; their exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size)}
    address |= {"LOCAL_WORLD_SIZE": str(size // nodes), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), names, str(folder), str(tokens.path)],
        env=os.environ | address | more,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        return json.loads(process.communicate(timeout=limit_s)[0])
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def results_of(folder: Path, rank: int, stage: str = "") -> dict:
    return json.loads((folder / f"results-{stage}{rank}.json").read_text())


def losses(folder: Path, key: str = "loss") -> list[float]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row[key] for row in rows if key in row]


@pytest.fixture(scope="module")
def alone(tiny_tokens: TokenDirectory, tmp_path_factory: pytest.TempPathFactory):
    """The training in one process: folder, weights, samples in their order."""
    folder = tmp_path_factory.mktemp("alone")
    model, _, asked = WORK.run_training(folder, tiny_tokens)
    return folder, model.state_dict(), asked


@pytest.fixture(scope="module")
def pair(tiny_tokens: TokenDirectory, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The work of two processes; the elastic training began in one, and ends in one."""
    folder = tmp_path_factory.mktemp("pair")
    WORK.run_training(folder / "elastic", tiny_tokens, stop_after=7)
    reference = WORK.small_llama(tied=False)
    for parameter in reference.parameters():  # not near uniform, as the fresh target is
        parameter.data.mul_(4)
    reference.save_pretrained(folder / "reference")
    works = "gradients,whole_training,distilled,loaded_in_turn,traffic,middle,full_disk"
    works += ",interrupted_validation"
    assert in_group(works, folder, tiny_tokens) == [0, 0]
    shutil.copytree(folder / "elastic", folder / "stopped")
    return folder


@pytest.mark.parametrize(
    ("batch_tokens", "micro_batch", "way_out"),
    [
        (256, 16, "The nearest that are: 512. Or set train.micro_batch to 8."),
        (512, 12, "The nearest that are: 384 or 768. Or set train.micro_batch to 8."),
        (1536, 7, "The nearest that are: 1344 or 1568. Or set train.micro_batch to 6."),
        (48, 3, "The nearest that are: 96."),  # one sequence for each process is left over
        (16, 1, "The nearest that are: 32."),
    ],
)
def test_a_batch_that_does_not_divide_names_a_micro_batch_only_where_one_does(
    batch_tokens: int, micro_batch: int, way_out: str
) -> None:
    two = Processes()
    two.size = 2
    train = Train.model_construct(seq_len=16, batch_tokens=batch_tokens, micro_batch=micro_batch)
    with pytest.raises(RecipeError) as refused:
        my_share(train, two)
    assert refused.value.hint == way_out


def test_fsdp_sum_recipe_gradients_are_the_true_sum(pair: Path) -> None:
    gaps = results_of(pair, 0)["gradients"]
    assert len(gaps) == 6
    assert max(gaps.values()) < 1e-6, gaps


def test_a_large_model_is_loaded_by_one_process_of_a_machine_at_a_time(pair: Path) -> None:
    times = [results_of(pair, rank)["loaded_in_turn"] for rank in (0, 1)]
    for name, at_once in (("turns", "pair"), ("turns-distilled", "beside")):
        (first, its_end), (second, _) = (own[name] for own in times)
        assert first < its_end < second
        assert losses(pair / name) == losses(pair / at_once)


def test_batch_partition_invariance(
    pair: Path, alone: tuple, tiny_tokens: TokenDirectory, tmp_path: Path
) -> None:
    whole = losses(alone[0])
    assert losses(pair / "pair") == pytest.approx(whole, abs=1e-5)
    assert losses(pair / "pair", "grad_norm") == pytest.approx(
        losses(alone[0], "grad_norm"), rel=1e-4
    )
    WORK.run_training(tmp_path, tiny_tokens, micro_batch=8)
    assert losses(tmp_path) == pytest.approx(whole, abs=1e-5)
    model = WORK.small_llama()
    load_weights(pair / "pair" / "checkpoints", model)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, alone[1][name], rtol=1e-3, atol=1e-4)


def test_frozen_weights_stay_and_the_others_train_as_in_one_process(
    pair: Path, tiny_tokens: TokenDirectory, tmp_path: Path
) -> None:
    only = ["last:1", "norms"]
    WORK.run_training(tmp_path, tiny_tokens, only=only)
    assert losses(pair / "part") == pytest.approx(losses(tmp_path), abs=1e-5)
    models = WORK.small_llama(), WORK.small_llama(), WORK.small_llama()
    for model, folder in zip(models, (pair / "part", tmp_path), strict=False):
        load_weights(folder / "checkpoints", model)
    both, alone, fresh = (model.state_dict() for model in models)
    for name, tensor in both.items():
        torch.testing.assert_close(tensor, alone[name], rtol=1e-3, atol=1e-4)
        assert torch.equal(tensor, fresh[name]) != ("norm" in name or ".layers.1." in name), name


def test_every_sample_of_a_step_is_seen_once_by_one_process(pair: Path, alone: tuple) -> None:
    first, second = (results_of(pair, rank)["whole_training"]["asked"] for rank in (0, 1))
    together = [n for step in range(20) for part in (first, second) for n in part[4 * step :][:4]]
    assert together == alone[2]


@pytest.mark.parametrize(
    ("how", "distill"),
    [
        ("beside", {}),
        ("kept", {"top_k": 64}),
        ("hidden", {"hidden": {}, "alpha": {"peak": 0.1, "end": 1.0}}),
    ],
)
def test_distillation_losses_are_those_of_one_process(
    how: str, distill: dict, pair: Path, tiny_tokens: TokenDirectory, tmp_path: Path
) -> None:
    shutil.copytree(pair / "reference", tmp_path / "reference")
    WORK.run_training(tmp_path / how, tiny_tokens, distill=distill)
    for key in ("loss", "ce", "kl", *[k for k in ("hidden", "alpha") if k in distill]):
        assert losses(pair / how, key) == pytest.approx(losses(tmp_path / how, key), abs=1e-5)
    assert [results_of(pair, rank)["distilled"]["shards"] for rank in (0, 1)] == [6, 6]


def test_each_of_two_processes_holds_half_of_a_bf16_reference(pair: Path) -> None:
    both = [results_of(pair, rank)["distilled"] for rank in (0, 1)]
    model = load_model(pair / "reference", dtype=torch.bfloat16)
    assert sum(each["held"] for each in both) == sum(p.numel() for p in model.parameters())
    assert abs(both[0]["held"] - both[1]["held"]) <= 0.02 * both[0]["held"]
    assert both[0]["dtypes"] == both[1]["dtypes"] == ["torch.bfloat16"]
    whole = model(torch.arange(32).view(2, 16)).logits.flatten(0, 1).float()
    for each in both:
        torch.testing.assert_close(torch.tensor(each["logits"]), whole, rtol=2e-2, atol=2e-2)


def test_val_loss_is_the_same_number_at_any_world_size(pair: Path, alone: tuple) -> None:
    assert results_of(pair, 0)["whole_training"]["start"] == losses(alone[0], "val_loss")[0]
    assert losses(pair / "pair", "val_loss") == pytest.approx(
        losses(alone[0], "val_loss"), abs=1e-5
    )


def test_resume_elastic_from_one_to_two_to_one(
    pair: Path, alone: tuple, tiny_tokens: TokenDirectory
) -> None:
    folder = pair / "elastic"
    _, trained, asked = WORK.run_training(folder, tiny_tokens)
    assert trained.restarts == 2
    # The step in which process 1 was asked to stop is done again, whole, by whoever goes on.
    assert asked[:56] == alone[2][13 * 8 :]
    assert losses(folder) == pytest.approx(losses(alone[0]), abs=1e-5)
    model = WORK.small_llama()
    load_weights(folder / "checkpoints", model)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, alone[1][name], rtol=1e-3, atol=1e-4)


def test_sigterm_of_one_rank_stops_all_at_the_same_step(pair: Path) -> None:
    assert all(results_of(pair, rank)["middle"]["stopped"] for rank in (0, 1))
    asked = [results_of(pair, rank)["middle"]["asked"] for rank in (0, 1)]
    assert len(asked[0]) == len(asked[1]) == 4 * 7  # steps 8 to 13, and the one that was dropped


def test_stop_of_one_rank_ends_the_validation_of_all(pair: Path) -> None:
    assert all(results_of(pair, rank)["interrupted_validation"]["stopped"] for rank in (0, 1))


def test_a_full_disk_of_one_rank_fails_the_save_in_all_and_publishes_nothing(pair: Path) -> None:
    assert sorted(results_of(pair, rank)["full_disk"]["code"] for rank in (0, 1)) == [4, 4]
    saved = [path.name for path in (pair / "full" / "checkpoints").glob("*step*")]
    assert saved == ["step-00000003"]


SAVED = ["model", "optimizer"]


@pytest.fixture
def shared_save(pair: Path, tmp_path: Path) -> Path:
    """The checkpoints of two processes, to be damaged; a good one of step 13 is older."""
    folder = tmp_path / "pair"
    shutil.copytree(pair / "pair" / "checkpoints", folder / "checkpoints")
    older = pair / "stopped" / "checkpoints" / "step-00000013"
    shutil.copytree(older, folder / "checkpoints" / older.name)
    shutil.copy(pair / "stopped" / "metrics.jsonl", folder)
    return folder


@pytest.mark.parametrize("kind", SAVED)
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("damage", ["removed", "truncated", "flipped"])
def test_corrupt_or_missing_file_of_each_rank_is_passed_over(
    kind: str, rank: int, damage: str, shared_save: Path
) -> None:
    newest = shared_save / "checkpoints" / "step-00000020"
    victim = newest / f"{kind}-{rank:05d}-of-00002.safetensors"
    content = bytearray(victim.read_bytes())
    if damage == "removed":
        victim.unlink()
    elif damage == "truncated":
        victim.write_bytes(content[: len(content) // 2])
    else:
        content[-1] ^= 1
        victim.write_bytes(content)
    position, notes = load(shared_save)
    assert position.step == 13
    assert len(notes) == 1
    assert victim.name in notes[0]


def test_missing_rows_are_detected_even_if_the_manifest_says_nothing(shared_save: Path) -> None:
    newest = shared_save / "checkpoints" / "step-00000020"
    manifest = json.loads((newest / "manifest.json").read_text())
    for kind in SAVED:  # as if one process had written alone
        (newest / f"{kind}-00001-of-00002.safetensors").unlink()
        del manifest["files"][f"{kind}-00001-of-00002.safetensors"]
        name = f"{kind}.safetensors"
        (newest / f"{kind}-00000-of-00002.safetensors").rename(newest / name)
        manifest["files"][name] = manifest["files"].pop(f"{kind}-00000-of-00002.safetensors")
    manifest["writers"] = 1
    (newest / "manifest.json").write_text(json.dumps(manifest))
    position, notes = load(shared_save)
    assert position.step == 13
    assert "rows of" in notes[0]


def test_surplus_checkpoint_file_is_detected(shared_save: Path) -> None:
    newest = shared_save / "checkpoints" / "step-00000020"
    shutil.copy(newest / "model-00000-of-00002.safetensors", newest / "extra.safetensors")
    position, notes = load(shared_save)
    assert position.step == 13
    assert "extra.safetensors was not written with it" in notes[0]


def test_a_tied_weight_is_saved_once(pair: Path) -> None:
    saved = pair / "pair" / "checkpoints" / "step-00000020"
    names = SavedTensors(saved.glob("model*.safetensors")).names
    assert "model.embed_tokens.weight" in names
    assert "lm_head.weight" not in names
    assert len(list(saved.glob("*.safetensors"))) == 4
    assert not [path for path in saved.iterdir() if path.suffix not in {".safetensors", ".json"}]


def load(folder: Path) -> tuple[Position, list[str]]:
    model = WORK.small_llama()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    return load_newest(folder / "checkpoints", model, optimizer, TrainingInputs(WORK.INPUTS))


@pytest.mark.parametrize(
    "how", ["killed", *(pytest.param(how, marks=pytest.mark.slow) for how in ("raises", "hangs"))]
)
def test_failure_of_one_process_ends_all_in_time(
    how: str, tiny_tokens: TokenDirectory, tmp_path: Path
) -> None:
    began = time.monotonic()
    codes = in_group("failing", tmp_path, tiny_tokens, HOW=how, TIMEOUT_S="5", limit_s=60)
    assert 0 not in codes
    assert codes[0] == 4
    assert time.monotonic() - began < 50
    assert not list((tmp_path / how).glob("checkpoints/*"))


def predicted_traffic(folder: Path, size: int, nodes: int) -> dict[str, dict[str, float]]:
    """The bytes of `group_work.traffic` by the cost model of `plan`."""
    target, reference = WORK.small_llama(), load_model(folder / "reference")
    params, beside = (sum(p.numel() for p in m.parameters()) for m in (target, reference))
    in_layers = sum(p.numel() for layer in layer_modules(target) for p in layer.parameters())
    found = {}
    for name, learned in (("plain", 0), ("distilled", beside)):
        model = TrainedModel(
            target.config.to_dict(), params, in_layers, 2, True, params, reference=learned
        )
        layout = Layout(size // nodes, micro_batch=2, micro_batches=8 // size // 2)
        step = Traffic.of(model, layout, nodes, 4)
        found[name] = {"gathered": step.gathered + step.reference, "reduced": step.reduced}
        found[name] |= {"exchanged": step.exchanged} if nodes > 1 else {}
    return found


def test_the_cost_model_counts_the_bytes_that_two_processes_exchange(pair: Path) -> None:
    expected = predicted_traffic(pair, 2, 1)
    assert [results_of(pair, rank)["traffic"] for rank in (0, 1)] == [expected] * 2
    assert expected["distilled"]["gathered"] > expected["plain"]["gathered"] > 0


# Processes, machines, and how the weights lie: over both machines; alone; over four; offloaded.
LEGS = [
    (2, 2, {"shards": 2, "sums_every_pass": True}),
    (1, 1, {}),
    (4, 2, {"shards": 4, "sums_every_pass": True}),
    (2, 1, {"shards": 2, "offloads": True}),
]


@pytest.mark.slow
def test_a_training_moves_from_layout_to_layout_with_the_same_samples_and_losses(
    tiny_tokens: TokenDirectory, tmp_path: Path
) -> None:
    reference = WORK.small_llama(tied=False)
    for parameter in reference.parameters():
        parameter.data.mul_(4)
    reference.save_pretrained(tmp_path / "reference")
    samples = {"plain": [], "distilled": []}
    checked = {"plain": 0, "distilled": 2}  # samples that a loss is proven on before its first step
    stages = [
        {
            "WORLD_SIZE": str(size),
            "LOCAL_WORLD_SIZE": str(size // nodes),
            "LAYOUT": json.dumps(layout),
            "STOP": str(4 * number),
            "STAGE": f"{number}-",
        }
        for number, (size, nodes, layout) in enumerate(LEGS, 1)
    ]
    codes = in_group("leg", tmp_path, tiny_tokens, STAGES=json.dumps(stages))
    assert codes == [0] * sum(size for size, *_ in LEGS)
    for number, (size, *_) in enumerate(LEGS, 1):
        for name, seen in samples.items():
            parts = [
                results_of(tmp_path, rank, f"{number}-")["leg"][name][checked[name] :]
                for rank in range(size)
            ]
            each = 8 // size
            # Behind the four steps is the one in which they were asked to stop: it is done again.
            seen += [n for s in range(4) for part in parts for n in part[each * s :][:each]]
    for name, distill in (("plain", None), ("distilled", {})):
        *_, asked = WORK.run_training(tmp_path / name, tiny_tokens, distill=distill)
        alone = tmp_path / f"{name}-alone"
        *_, expected = WORK.run_training(alone, tiny_tokens, distill=distill)
        assert samples[name] + asked[checked[name] :] == expected[checked[name] :]
        assert losses(tmp_path / name) == pytest.approx(losses(alone), abs=1e-5)


@pytest.mark.slow
def test_two_machines_of_two_processes_give_the_same_gradients_and_weights(
    alone: tuple, tiny_tokens: TokenDirectory, tmp_path: Path
) -> None:
    WORK.small_llama(tied=False).save_pretrained(tmp_path / "reference")
    works = "gradients,whole_training,traffic"
    assert in_group(works, tmp_path, tiny_tokens, size=4, nodes=2) == [0] * 4
    counted = [results_of(tmp_path, rank)["traffic"] for rank in range(4)]
    assert counted == [predicted_traffic(tmp_path, 4, 2)] * 4
    assert max(results_of(tmp_path, 0)["gradients"].values()) < 1e-6
    assert losses(tmp_path / "pair") == pytest.approx(losses(alone[0]), abs=1e-5)
    saved = tmp_path / "pair" / "checkpoints" / "step-00000020"
    assert len(list(saved.glob("model-*.safetensors"))) == 2  # one machine's worth
    model = WORK.small_llama()
    load_weights(saved.parent, model)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, alone[1][name], rtol=1e-3, atol=1e-4)
