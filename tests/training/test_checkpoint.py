import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaForCausalLM

from inheritune.errors import CheckpointError, MachineError, RecipeError
from inheritune.training.checkpoint import (
    Position,
    load_newest,
    save_checkpoint,
)
from inheritune.training.training_inputs import TrainingInputs

INPUTS = TrainingInputs({"seed": 0})


def stepped(model: LlamaForCausalLM) -> torch.optim.AdamW:
    """An optimizer that has made a step, so that it has moments."""
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    ids = torch.arange(16).unsqueeze(0)
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return optimizer


def save(folder: Path, model: LlamaForCausalLM, step: int, keep: int = 9) -> Path:
    position = Position(step=step, tokens=step * 128)
    return save_checkpoint(folder, model, stepped(model), position, INPUTS, keep)


def load(folder: Path, model: LlamaForCausalLM) -> tuple[Position, list[str]]:
    return load_newest(folder, model, torch.optim.AdamW(model.parameters()), INPUTS)


def test_load_without_checkpoints_begins_at_step_0(
    small_llama: LlamaForCausalLM, tmp_path: Path
) -> None:
    assert load(tmp_path, small_llama) == (Position(), [])


def test_weights_and_moments_come_back_bit_for_bit(
    small_llama: LlamaForCausalLM, tmp_path: Path
) -> None:
    optimizer = stepped(small_llama)
    position = Position(step=3, tokens=384, elapsed_s=1.5, skipped=1)
    save_checkpoint(tmp_path, small_llama, optimizer, position, INPUTS, keep=1)
    weights = {name: tensor.clone() for name, tensor in small_llama.state_dict().items()}
    moments = [optimizer.state[param] for param in small_llama.parameters()]
    with torch.no_grad():
        for param in small_llama.parameters():
            param.zero_()
    other = torch.optim.AdamW(small_llama.parameters(), fused=True)
    assert load_newest(tmp_path, small_llama, other, INPUTS) == (position, [])
    for name, tensor in small_llama.state_dict().items():
        assert torch.equal(tensor, weights[name]), name
    for param, before in zip(small_llama.parameters(), moments, strict=True):
        assert other.state[param].keys() == before.keys()
        assert all(torch.equal(other.state[param][key], before[key]) for key in before)


def test_only_the_newest_checkpoints_are_kept(
    small_llama: LlamaForCausalLM, tmp_path: Path
) -> None:
    for step in (1, 2, 3):
        save(tmp_path, small_llama, step, keep=2)
    left = sorted(p.name for p in tmp_path.iterdir())
    assert left == ["latest", "step-00000002", "step-00000003"]


def test_a_copy_that_somebody_made_of_a_checkpoint_is_left_alone(
    small_llama: LlamaForCausalLM, tmp_path: Path
) -> None:
    newest = save(tmp_path, small_llama, step=12)
    backup = newest.with_name(f"{newest.name}-backup")
    shutil.copytree(newest, backup)
    position, notes = load(tmp_path, small_llama)
    assert (position.step, notes) == (12, [])
    save(tmp_path, small_llama, step=13, keep=1)
    assert backup.exists() and not newest.exists()


def test_checkpoint_of_the_best_val_loss_is_kept_beside_the_newest(
    small_llama: LlamaForCausalLM, tmp_path: Path
) -> None:
    optimizer = stepped(small_llama)
    losses = {0: 0.1, 1: 3.0, 2: 1.0, 3: None}  # of step 0 nothing is saved
    for step in (1, 2, 3, 4):
        position = Position(step=step, tokens=step * 128)
        save_checkpoint(tmp_path, small_llama, optimizer, position, INPUTS, 1, val_losses=losses)
    left = sorted(p.name for p in tmp_path.iterdir())
    assert left == ["latest", "step-00000002", "step-00000004"]


def test_checkpoint_of_another_data_order_is_refused(
    small_llama: LlamaForCausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, small_llama, 1)
    monkeypatch.setattr("inheritune.training.checkpoint_files.ORDER_VERSION", 2)
    with pytest.raises(CheckpointError, match="made in order 1, not 2"):
        load(tmp_path, small_llama)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "trainer.json"])
@pytest.mark.parametrize("damage", ["removed", "truncated", "flipped"])
def test_a_damaged_checkpoint_is_passed_over_with_its_reason(
    name: str, damage: str, small_llama: LlamaForCausalLM, tmp_path: Path
) -> None:
    save(tmp_path, small_llama, 1)
    victim = save(tmp_path, small_llama, 2) / name
    content = bytearray(victim.read_bytes())
    if damage == "removed":
        victim.unlink()
    elif damage == "truncated":
        victim.write_bytes(content[: len(content) // 2])
    else:
        content[-1] ^= 1
        victim.write_bytes(content)
    position, passed_over = load(tmp_path, small_llama)
    assert position.step == 1
    assert len(passed_over) == 1
    assert "step-00000002" in passed_over[0]
    assert name in passed_over[0]


@pytest.mark.parametrize(
    "manifest",
    ["", "[]", "{}", '{"format": 1, "files": {}}', '{"format": 99, "files": {}}', "{" * 9999],
)
def test_a_broken_manifest_is_passed_over(
    manifest: str, small_llama: LlamaForCausalLM, tmp_path: Path
) -> None:
    save(tmp_path, small_llama, 1)
    (save(tmp_path, small_llama, 2) / "manifest.json").write_text(manifest)
    position, passed_over = load(tmp_path, small_llama)
    assert position.step == 1
    assert len(passed_over) == 1


def test_a_manifest_cannot_name_files_elsewhere(
    small_llama: LlamaForCausalLM, tmp_path: Path
) -> None:
    checkpoint = save(tmp_path, small_llama, 1)
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest["files"]["../outside"] = manifest["files"]["trainer.json"]
    shutil.copyfile(checkpoint / "trainer.json", tmp_path / "outside")
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError):
        load(tmp_path, small_llama)


def test_load_fails_when_no_checkpoint_is_whole(
    small_llama: LlamaForCausalLM, tmp_path: Path
) -> None:
    (save(tmp_path, small_llama, 1) / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model.safetensors is missing.*remove") as error:
        load(tmp_path, small_llama)
    assert error.value.exit_code == 3


def test_a_passed_over_checkpoint_is_written_again_at_its_step(
    small_llama: LlamaForCausalLM, tmp_path: Path
) -> None:
    (save(tmp_path, small_llama, 1) / "model.safetensors").unlink()
    save(tmp_path, small_llama, 1)
    assert load(tmp_path, small_llama)[0].step == 1


def test_damaged_checkpoints_never_crowd_out_the_one_just_written(
    small_llama: LlamaForCausalLM, tmp_path: Path
) -> None:
    (save(tmp_path, small_llama, 20, keep=1) / "model.safetensors").unlink()
    save(tmp_path, small_llama, 15, keep=1)
    assert load(tmp_path, small_llama)[0].step == 15


def test_damaged_checkpoint_is_not_counted_among_those_to_keep(
    small_llama: LlamaForCausalLM, tmp_path: Path
) -> None:
    for step in (1, 2, 3):
        save(tmp_path, small_llama, step)
    (tmp_path / "step-00000002" / "model.safetensors").write_bytes(b"cut off")
    (tmp_path / "step-00000003" / "manifest.json").unlink()
    newest = save(tmp_path, small_llama, 4, keep=2)
    assert [p.name for p in sorted(tmp_path.glob("step-*"))] == ["step-00000001", newest.name]
    (newest / "model.safetensors").unlink()
    assert load(tmp_path, small_llama)[0].step == 1


def test_checkpoint_that_was_passed_over_is_dropped_when_a_newer_one_is_saved(
    small_llama: LlamaForCausalLM, tmp_path: Path
) -> None:
    for step in (1, 2):
        save(tmp_path, small_llama, step)
    victim = tmp_path / "step-00000002" / "model.safetensors"
    content = bytearray(victim.read_bytes())
    content[-1] ^= 1  # which only its digest shows
    victim.write_bytes(content)
    assert load(tmp_path, small_llama)[0].step == 1
    save(tmp_path, small_llama, 3, keep=2)
    assert [p.name for p in sorted(tmp_path.iterdir())] == [
        "latest",
        "step-00000001",
        "step-00000003",
    ]


def test_machine_settings_of_a_checkpoint_are_compared(
    small_llama: LlamaForCausalLM, tmp_path: Path
) -> None:
    def optimizer() -> torch.optim.AdamW:
        return torch.optim.AdamW(small_llama.parameters())

    def load_with(settings: dict[str, object], *allowed: str) -> tuple[Position, list[str]]:
        inputs = TrainingInputs({"seed": 0}, settings=settings, allowed=allowed)
        return load_newest(tmp_path, small_llama, optimizer(), inputs)

    begun = {"precision": "bf16", "compile": True, "new": 1}
    inputs = TrainingInputs({"seed": 0}, settings=begun)
    save_checkpoint(tmp_path, small_llama, optimizer(), Position(1, 128), inputs, 1)
    assert load_with(begun | {"other": 2}) == (Position(1, 128), [])
    assert load_with(begun | {"compile": False})[1] == [
        "settings.compile was True, now it is False"
    ]
    fp32 = {"precision": "fp32"}
    with pytest.raises(RecipeError, match=r"trained in bf16; train\.precision comes to fp32"):
        load_with(fp32)
    assert load_with(fp32, "train.precision")[1] == ["settings.precision was bf16, now it is fp32"]


def test_a_planted_pickle_is_never_read(small_llama: LlamaForCausalLM, tmp_path: Path) -> None:
    pickle = b"cos\nsystem\n(S'touch PWNED'\ntR."
    (save(tmp_path, small_llama, 1) / "optimizer.pt").write_bytes(pickle)
    assert load(tmp_path, small_llama)[0].step == 1
    assert not Path("PWNED").exists()


def test_crash_while_saving_leaves_the_last_checkpoint_and_no_litter(
    small_llama: LlamaForCausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, small_llama, 1)

    def full_disk(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", full_disk)
        with pytest.raises(MachineError, match="no space left"):
            save(tmp_path, small_llama, 2)
    assert [p.name for p in tmp_path.glob("*step*")] == ["step-00000001"]
    assert load(tmp_path, small_llama)[0].step == 1


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_no_flipped_byte_is_ever_loaded(
    data: st.DataObject, checkpoint_bytes: tuple[Path, dict[str, bytes], LlamaForCausalLM]
) -> None:
    folder, contents, model = checkpoint_bytes
    name = data.draw(st.sampled_from(sorted(contents)))
    index = data.draw(st.integers(0, len(contents[name]) - 1))
    mutated = bytearray(contents[name])
    mutated[index] ^= data.draw(st.integers(1, 255))
    victim = folder / "step-00000001" / name
    victim.write_bytes(mutated)
    try:
        position, passed_over = load(folder, model)
        # Only bytes that mean nothing may change: blanks and notes of the manifest.
        assert name == "manifest.json"
        assert (position.step, passed_over) == (1, [])
    except CheckpointError:
        pass
    finally:
        victim.write_bytes(contents[name])


@pytest.fixture(scope="module")
def checkpoint_bytes(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, dict[str, bytes], LlamaForCausalLM]:
    from transformers import LlamaConfig

    torch.manual_seed(0)
    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=32, num_attention_heads=2, **small))
    folder = tmp_path_factory.mktemp("checkpoints")
    checkpoint = save(folder, model, 1)
    return folder, {path.name: path.read_bytes() for path in checkpoint.iterdir()}, model
