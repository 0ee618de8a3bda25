import subprocess
import sys

import pytest
import torch

from inheritune.model_files.training_memory import Layout, TrainedModel, estimate_memory
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
    reasons = {"device", "precision", "attention", "compile", "micro_batch"}
    assert set(record["reasons"]) == reasons
    assert record["device"] == "cpu"


@pytest.mark.skipif(sys.platform != "linux", reason="glibc only")
def test_freed_memory_stays_in_the_process() -> None:
    code = (
        "from pathlib import Path\n"
        "if {keep}:\n"
        "    from inheritune.training.hardware import keep_freed_memory\n"
        "    keep_freed_memory()\n"
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


BIG = {"tokens": "1M", "seq_len": 1024, "batch_tokens": 8 * 24 * 1024, "precision": "fp32"}


def bytes_of(micro_batch: int, recomputes: bool) -> int:
    """What one of eight devices holds in a step of `BIG`, with 8B parameters."""
    layout = Layout(8, micro_batch, 24 // micro_batch, True, recomputes, loss="op")
    return estimate_memory(llama(8 * 10**9), layout, 1024, "fp32").total


@pytest.mark.parametrize(
    ("room", "recomputing", "expected"),
    [
        (bytes_of(24, False), "auto", (24, False)),  # the whole share of a device at once
        (bytes_of(24, False) - 1, "auto", (12, False)),
        (bytes_of(3, False), "auto", (3, False)),  # though 24 fit where layers are recomputed
        (bytes_of(1, False) - 1, "auto", (12, True)),
        (bytes_of(1, False) - 1, "off", (1, False)),
        (bytes_of(2, True), "on", (2, True)),
        (1, "auto", (1, True)),
    ],
)
def test_auto_takes_the_largest_micro_batch_that_fits_first_without_recomputing(
    room: int,
    recomputing: str,
    expected: tuple[int, bool],
    large_gpu: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(settings, "room_in", lambda memory: room)
    asked = {"micro_batch": "auto", "activation_checkpointing": recomputing}
    chosen = choose_settings(Train.model_validate(BIG | asked), 0, 8, model=llama(8 * 10**9))
    assert (chosen.micro_batch, chosen.activation_checkpointing) == expected


def test_auto_takes_no_more_than_before_a_checkpoint(large_gpu: None) -> None:
    train = Train.model_validate(BIG | {"micro_batch": "auto"})
    small = llama(10**9, layers=2)
    chosen = [
        choose_settings(train, 0, size, model=small, before=before).micro_batch
        for size, before in ((8, None), (8, 6), (8, 5), (24, 6), (24, 16), (1, 6))
    ]
    assert chosen == [24, 6, 4, 4, 8, 6]  # that divides a process's share of 24, 8 and 192


def test_on_a_cpu_auto_takes_eight_sequences_or_the_most_below_that_divide() -> None:
    for sequences, expected in ((64, 8), (12, 6), (10, 5), (7, 7), (11, 1)):
        batch = {"batch_tokens": sequences * 64, "micro_batch": "auto"}
        chosen = choose_settings(recipe(**batch), SHORT)
        assert chosen.micro_batch == expected
        assert chosen.reasons["micro_batch"] == "at most 8 on a CPU, whose memory is not counted"


def test_a_stated_micro_batch_is_left_to_the_recipe() -> None:
    chosen = choose_settings(recipe(), SHORT)
    assert chosen.micro_batch is None
    assert "micro_batch" not in chosen.compared()
    chosen = choose_settings(recipe(micro_batch="auto"), SHORT)
    assert chosen.compared()["micro_batch"] == chosen.micro_batch == 5
