import subprocess
import sys

import pytest
import torch

from inheritune.model_files.training_memory import TrainedModel
from inheritune.recipe.training import Train
from inheritune.training import hardware as settings
from inheritune.training.hardware import choose_settings

LONG, SHORT = 1e18, 1e9  # FLOPs


def recipe(**fields: object) -> Train:
    base = {"tokens": 10_000, "seq_len": 64, "batch_tokens": 640, "micro_batch": 10}
    return Train.model_validate(base | fields)


@pytest.fixture(autouse=True)
def _on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.parametrize(
    ("flags", "precision"),
    [({"avx512_bf16"}, "bf16"), ({"amx_bf16"}, "bf16"), ({"avx2"}, "fp32"), (set(), "fp32")],
)
def test_precision_follows_the_processor(
    flags: set[str], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "processor_flags", lambda: frozenset(flags))
    assert choose_settings(recipe(), SHORT).precision == precision


def test_attention_follows_the_sequence_length() -> None:
    assert choose_settings(recipe(seq_len=512, batch_tokens=5120), SHORT).attention == "matmul"
    assert choose_settings(recipe(seq_len=1024, batch_tokens=10240), SHORT).attention == "model"


def test_compiling_follows_the_planned_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert not choose_settings(recipe(), SHORT).compile
    assert choose_settings(recipe(), LONG).compile


def test_missing_compiler_turns_compiling_off_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(settings.shutil, "which", lambda name: None)
    chosen = choose_settings(recipe(compile="on"), LONG)
    assert not chosen.compile
    assert chosen.reasons["compile"] == "no C++ compiler on this machine"


def test_every_kernel_can_be_switched_off() -> None:
    off = {"precision": "fp32", "attention": "model", "compile": "off"}
    off |= {"fused_gelu": "off", "fused_optimizer": "off", "keep_large_blocks": "off"}
    chosen = choose_settings(recipe(**off), LONG)
    assert chosen.precision == "fp32"
    assert chosen.attention == "model"
    assert not any(
        [chosen.compile, chosen.fused_gelu, chosen.fused_optimizer, chosen.keep_large_blocks]
    )


def test_settings_are_json_values() -> None:
    record = choose_settings(recipe(), SHORT).record()
    assert set(record["reasons"]) == {"device", "precision", "attention", "compile"}
    assert record["device"] == "cpu"


@pytest.mark.skipif(sys.platform != "linux", reason="glibc only")
def test_freed_memory_stays_in_the_process() -> None:
    code = (
        "from pathlib import Path; from inheritune.training.hardware import keep_freed_memory\n"
        "if {keep}: keep_freed_memory()\n"
        "block = bytearray(b'x') * (512 << 20); del block\n"
        "print(int(Path('/proc/self/statm').read_text().split()[1]) * 4096 >> 20)\n"
    )

    def resident_mb(keep: bool) -> int:
        command = [sys.executable, "-c", code.format(keep=keep)]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert resident_mb(keep=True) > 512 > resident_mb(keep=False)


def llama(params: int, layers: int = 32) -> TrainedModel:
    """The sizes of a Llama of which all is trained."""
    widths = {"hidden_size": 4096, "intermediate_size": 14336, "vocab_size": 128_256}
    heads = {"num_attention_heads": 32, "num_key_value_heads": 8}
    config = {"model_type": "llama", "num_hidden_layers": layers} | widths | heads
    return TrainedModel(config, params, params - 2 * 128_256 * 4096, layers, False, params)


@pytest.fixture
def large_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "choose_device", lambda: "cuda")
    monkeypatch.setattr(settings, "device_memory", lambda device: 80 * 10**9)


def test_a_model_begins_on_the_host_only_where_its_weights_alone_exceed_a_device(
    large_gpu: None,
) -> None:
    train = Train.model_validate({"tokens": 1000, "precision": "fp32"})
    begin = [
        choose_settings(train, 0, 8, model=llama(params)).begins_on_host
        for params in (8 * 10**9, 21 * 10**9)
    ]
    assert begin == [False, True]


@pytest.mark.parametrize(
    ("asked", "micro_batch", "recomputes"),
    [("auto", 1, False), ("auto", 8, True), ("off", 8, False), ("on", 1, True)],
)
def test_layers_are_recomputed_by_auto_only_where_a_device_has_no_room_for_what_they_keep(
    large_gpu: None, asked: str, micro_batch: int, recomputes: bool
) -> None:
    fields = {"tokens": "1M", "seq_len": 1024, "batch_tokens": 8 * 8 * 1024, "precision": "fp32"}
    fields |= {"micro_batch": micro_batch, "activation_checkpointing": asked}
    chosen = choose_settings(Train.model_validate(fields), 0, 8, model=llama(8 * 10**9))
    assert chosen.activation_checkpointing is recomputes


def test_on_a_cpu_auto_recomputes_nothing() -> None:
    train = recipe(activation_checkpointing="auto")
    assert not choose_settings(train, SHORT, model=llama(8 * 10**9)).activation_checkpointing
