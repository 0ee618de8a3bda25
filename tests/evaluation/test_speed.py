"""Bytes are those of formulas; times are of models in turn, and of as many tokens as were asked."""

import json
from pathlib import Path

import pytest
import torch
from tiny_models import build, save
from transformers import AutoModelForCausalLM

from inheritune.errors import SourceError
from inheritune.evaluation import speed
from inheritune.evaluation.gains import measure_gains
from inheritune.evaluation.speed import (
    LiveModel,
    LiveTensors,
    Spread,
    cache_bytes_per_token,
    measure_speed,
    peak_bytes,
)
from inheritune.model_files.directory import open_model

PROMPTS = torch.arange(3 * 20).view(3, 20)


@pytest.mark.parametrize(
    ("family", "bytes_per_token"),
    [
        ("llama", 4 * 2 * 2 * 8 * 4),  # layers x (keys and values) x heads x width x bytes
        ("gpt2", 4 * 2 * 4 * 8 * 4),
        ("gemma3", 1 * 2 * 2 * 8 * 4),  # six of seven layers have a window of 8
    ],
)
def test_the_cache_grows_by_its_keys_and_values(family: str, bytes_per_token: int) -> None:
    model = build(family)
    assert cache_bytes_per_token(model, PROMPTS[:1]) == bytes_per_token
    assert cache_bytes_per_token(model.to(torch.bfloat16), PROMPTS[:1]) == bytes_per_token // 2


def test_live_tensors_are_counted_once_and_until_they_go() -> None:
    known = torch.zeros(500)
    with LiveTensors([known.untyped_storage()._cdata]) as live:
        first = torch.zeros(1000)
        view = first.view(10, 100)
        second = first + known[:1]
        assert live.peak == 8000
        del first, second
        third = view * 2  # the view holds the first
        del third
        assert live.peak == 8000
        del view
        torch.zeros(2001)
        assert live.peak == 8004


def test_the_peak_holds_weights_cache_and_activations() -> None:
    model = build("llama")
    weights = sum(parameter.nbytes for parameter in model.parameters())
    cache = 512 * (20 + 8)
    peaks = [peak_bytes(model, PROMPTS[:1], tokens) for tokens in (8, 40)]
    assert weights + cache < peaks[0] < peaks[1]
    assert peaks[0] == peak_bytes(model, PROMPTS[:1], 8)


def test_tied_weights_are_counted_once() -> None:
    tied, untied = build("llama-tied"), build("llama")
    apart = untied.get_output_embeddings().weight.nbytes
    gap = peak_bytes(untied, PROMPTS[:1], 4) - peak_bytes(tied, PROMPTS[:1], 4)
    assert gap == apart


def test_models_are_measured_in_turn_on_the_same_prompts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[tuple[str, list[int]]] = []
    lives = []
    for name in ("one", "two"):
        model = AutoModelForCausalLM.from_pretrained(save("llama", tmp_path / name))
        model.name = name
        lives.append(LiveModel(name, open_model(str(tmp_path / name)), model))

    def timed(model, prompt, new_tokens):
        order.append((model.name, prompt[0, :1].tolist()))
        return float(len(order)), 2.0, 3.0

    monkeypatch.setattr(speed, "_timed", timed)
    one, two = measure_speed(lives, PROMPTS, 4)
    assert order == [(name, [start]) for start in (0, 0, 20, 40) for name in ("one", "two")]
    assert one.prefill == Spread(5.0, 3.0, 7.0)  # without the first, which warms up
    assert two.decode == Spread(2.0, 2.0, 2.0)
    assert one.disk_bytes == (tmp_path / "one/model.safetensors").stat().st_size
    assert one.params == sum(p.numel() for p in lives[0].model.parameters())


def test_a_model_that_ends_its_text_goes_on() -> None:
    model = build("llama")
    model.generation_config.eos_token_id = list(range(1, 320))
    model.generation_config.max_time = 1e-6
    model.generation_config.stop_strings = ["e"]
    model.generation_config.penalty_alpha = 0.6
    clock = speed._Clock()
    speed._generate(model, PROMPTS[:1], 7, clock)
    assert len(clock.times) == 7
    assert clock.times == sorted(clock.times)


@pytest.mark.parametrize(
    ("own", "named"),
    [
        ({"cache_implementation": "quantized"}, r"with its generation_config\.json"),
        ({"compile_config": {}}, "`compile_config`"),  # transformers does not even load the model
    ],
)
def test_settings_that_cannot_be_measured_are_named(own: dict, named: str, tmp_path: Path) -> None:
    save("llama", tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps(own))
    with pytest.raises(SourceError, match=named):
        measure_gains([("one", open_model(str(tmp_path)))])


def test_without_text_nothing_is_said_of_fidelity(tiny_reference: Path) -> None:
    model = open_model(str(tiny_reference))
    gains = measure_gains([("one", model), ("two", model)])
    assert gains.fidelity == (None, None)
    assert (gains.prompt_tokens, gains.new_tokens, gains.repeats) == (96, 32, 5)
    assert {row["kl"] for row in gains.rows()} == {None}
    for one in gains.models:
        for spread in (one.prefill, one.decode, one.first_token):
            assert 0 < spread.low <= spread.median <= spread.high


def test_with_text_each_model_is_compared_with_the_first(tiny_reference: Path, tiny_tokens) -> None:
    model = open_model(str(tiny_reference))
    gains = measure_gains([("one", model), ("two", model)], tiny_tokens.val, 16)
    first, second = gains.fidelity
    assert first is None
    assert (second.kl, second.top1, second.windows) == (0.0, 1.0, tiny_tokens.val.num_samples(16))
    assert json.loads(json.dumps(gains.as_json()))["models"][1]["fidelity"]["kl"] == 0.0
