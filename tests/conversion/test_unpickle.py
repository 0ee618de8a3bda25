import os
import warnings
import zipfile

import pytest
import torch

from inheritune.conversion.unpickle import Checkpoint, safetensors_dtype
from inheritune.errors import SourceError


def refused(path, match):
    with pytest.raises(SourceError, match=match) as error:
        Checkpoint([path]).load(path)
    assert len(str(error.value).splitlines()) == 1


def quantised():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: torch.eye(3).to_sparse(), "model.extra is sparse"),
        (quantised, "model.extra is quantised"),
        (lambda: torch.ones(1).expand(10**12), "model.extra repeats the same memory"),
        (lambda: torch.ones(9).as_strided((3, 5), (2, 1)), "model.extra repeats the same memory"),
        (lambda: torch.ones(3, device="meta"), "model.extra has no values"),
        (lambda: torch.ones(3, dtype=torch.complex128), "model.extra is of torch.complex128"),
        (lambda: [1, 2], "model.extra is no tensor, but a value of type list"),
        (lambda: {"a": torch.ones(3)}, "model.extra is no tensor, but a value of type dict"),
    ],
    ids=["sparse", "quantised", "expanded", "strided", "meta", "complex128", "list", "dict"],
)
def test_what_is_no_plain_tensor_is_refused_by_name(tmp_path, make, match):
    path = tmp_path / "x.bin"
    torch.save({"model.norm": torch.ones(3), "model.extra": make()}, path)
    refused(path, f"^x.bin: {match}")


@pytest.mark.parametrize("value", [[], {}, torch.ones(3), None], ids=str)
def test_what_holds_no_tensors_by_name_is_refused(tmp_path, value):
    torch.save(value, tmp_path / "x.bin")
    refused(tmp_path / "x.bin", "x.bin holds no tensors by name")


@pytest.mark.parametrize("name", [1, "a\nb", "__metadata__"])
def test_names_that_safetensors_cannot_hold_are_refused(tmp_path, name):
    torch.save({name: torch.ones(3)}, tmp_path / "x.bin")
    refused(tmp_path / "x.bin", "x.bin names a tensor")


def _packed_again(path, change):
    """The same entries in a new zip; ``change`` may alter how one is written."""
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            archive.writestr(*change(name, data))


@pytest.mark.parametrize("ending", ["data.pkl", "data/0", "version"])
def test_a_compressed_entry_is_refused_before_torch_opens_it(tmp_path, monkeypatch, ending):
    torch.save({"a": torch.ones(3)}, tmp_path / "x.bin")
    how = {True: zipfile.ZIP_DEFLATED, False: zipfile.ZIP_STORED}
    _packed_again(tmp_path / "x.bin", lambda n, data: (n, data, how[n.endswith(ending)]))
    monkeypatch.setattr(torch, "load", None)
    refused(tmp_path / "x.bin", f"{ending} is compressed; torch never does that")


def test_a_large_pickle_is_refused_before_torch_opens_it(tmp_path, monkeypatch):
    torch.save({"a": torch.ones(3)}, tmp_path / "x.bin")
    long = bytes(65 * 2**20)
    _packed_again(tmp_path / "x.bin", lambda n, data: (n, long if n.endswith(".pkl") else data))
    monkeypatch.setattr(torch, "load", None)
    refused(tmp_path / "x.bin", r"data.pkl has 68,157,440 bytes; a pickle of names has less")


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_truncated_file_is_refused(tmp_path, share, legacy):
    path = tmp_path / "x.bin"
    torch.save({"a": torch.ones(9999)}, path, _use_new_zipfile_serialization=not legacy)
    os.truncate(path, int(path.stat().st_size * share))
    refused(path, "x.bin (is cut short or broken|holds more than tensors, or is broken)")


@pytest.mark.filterwarnings("ignore")
def test_a_torchscript_program_is_refused(tmp_path):
    torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)).save(tmp_path / "x.pt")
    refused(tmp_path / "x.pt", "x.pt is a TorchScript program")


def test_several_models_in_one_file_are_not_chosen_from(tmp_path):
    state = {"a": torch.ones(3)}
    torch.save({"model": state, "module": state}, tmp_path / "x.bin")
    refused(tmp_path / "x.bin", "model is no tensor")


def test_wrappers_may_be_nested(tmp_path):
    state = {"a": torch.ones(3)}
    torch.save({"model": {"state_dict": state, "step": 1}, "lr": 0.1}, tmp_path / "x.bin")
    checkpoint = Checkpoint([tmp_path / "x.bin"])
    assert torch.equal(checkpoint.load(checkpoint.files[0])["a"], state["a"])
    assert checkpoint.left_out == {
        "lr": "stands beside model in x.bin",
        "step": "stands beside state_dict in x.bin",
    }


def test_a_tensor_with_and_without_a_wrapper_s_name_is_refused(tmp_path):
    torch.save({"a": torch.zeros(2), "_orig_mod.a": torch.ones(2)}, tmp_path / "x.bin")
    refused(tmp_path / "x.bin", "x.bin holds a tensor with and without the names of _orig_mod.*: a")


def test_mapped_files_are_told_from_those_that_cannot_be(tmp_path):
    state = {"a": torch.ones(3)}
    torch.save(state, tmp_path / "new.bin")
    torch.save(state, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    checkpoint = Checkpoint([tmp_path / "new.bin", tmp_path / "old.bin"])
    assert checkpoint.unmapped == ["old.bin"]
    assert torch.equal(
        checkpoint.load(checkpoint.files[0])["a"], checkpoint.load(checkpoint.files[1])["a"]
    )


def test_every_type_of_safetensors_has_its_name():
    assert safetensors_dtype(torch.ones(1, dtype=torch.bfloat16)) == "BF16"
    assert safetensors_dtype(torch.ones(1, dtype=torch.bool)) == "BOOL"
    assert safetensors_dtype(torch.ones(1, dtype=torch.complex128)) is None
