import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from inheritune.errors import MachineError
from inheritune.steps.limits import checkpoint_bytes, refuse_large_training, weights_bytes


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The disk, as the system would tell of it."""
    disk = SimpleNamespace(free=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: disk)
    return disk


def test_a_training_that_does_not_fit_is_refused_with_both_amounts(
    free: SimpleNamespace, tmp_path: Path
) -> None:
    # The two newest, the best, one being written, and the model: 12 and 4 bytes for each parameter,
    # and a tenth.
    needed = 57_200
    assert round(1.1 * (checkpoint_bytes(1000, 1000) * 4 + weights_bytes(1000))) == needed
    free.free = needed
    refuse_large_training(tmp_path / "not there yet", 1000, 1000, "F32", keep=2)
    free.free -= 1
    with pytest.raises(MachineError, match=r"57,200 bytes.*57,199 left.*train\.keep") as error:
        refuse_large_training(tmp_path, 1000, 1000, "F32", keep=2)
    assert error.value.exit_code == 4


def test_files_saved_before_a_stop_count_as_room(free: SimpleNamespace, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoints" / "step-00000001"
    checkpoint.mkdir(parents=True)
    (checkpoint / "model.safetensors").write_bytes(bytes(12_000))
    free.free = 45_200
    refuse_large_training(tmp_path, 1000, 1000, "F32", keep=2)


def test_snapshots_count_and_links_do_not(free: SimpleNamespace, tmp_path: Path) -> None:
    free.free = 92_199  # two snapshots more: a checkpoint and a model each
    with pytest.raises(MachineError, match="92,400 bytes"):
        refuse_large_training(tmp_path, 1000, 1000, "F32", keep=2, snapshots=2)
    saved = tmp_path / "checkpoints/step-00000001/model.safetensors"
    kept = tmp_path / "moments/0000000001/step-00000001/model.safetensors"
    for path in (saved, kept):
        path.parent.mkdir(parents=True)
    saved.write_bytes(bytes(12_000))
    kept.hardlink_to(saved)
    free.free = 92_400 - 12_000
    refuse_large_training(tmp_path, 1000, 1000, "F32", keep=2, snapshots=2)
    free.free -= 1
    with pytest.raises(MachineError):
        refuse_large_training(tmp_path, 1000, 1000, "F32", keep=2, snapshots=2)
