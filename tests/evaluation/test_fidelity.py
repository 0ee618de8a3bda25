"""KL divergence, agreement and overlap are those of float64 formulas over whole distributions."""

import math
from pathlib import Path

import pytest
import torch
from tiny_models import build
from transformers import AutoModelForCausalLM

from inheritune.errors import DataError
from inheritune.evaluation.fidelity import measure_fidelity, token_fidelity
from inheritune.training import lazy_logits

FAMILIES = ["llama", "gpt2", "gemma3", "mixtral", "opt"]


class RandomTokens:
    """A stream of random ids, as `TokenStream`."""

    def __init__(self, num_ids: int, rows: int) -> None:
        self.num_ids = num_ids
        self._ids = torch.randint(rows, (num_ids,), generator=torch.Generator().manual_seed(1))

    def num_samples(self, seq_len: int) -> int:
        return (self.num_ids - 1) // seq_len

    def samples(self, indices, seq_len):
        return torch.stack(
            [self._ids[i * seq_len : (i + 1) * seq_len + 1] for i in indices]
        ).numpy()


def in_float64(reference, target, stream, seq_len: int) -> list[tuple[float, float]]:
    """Mean and standard error of the three figures, by their formulas and from whole logits."""
    windows = []
    for place in range(stream.num_samples(seq_len)):
        ids = torch.from_numpy(stream.samples([place], seq_len))[:, :-1]
        with torch.no_grad():
            z_p, z_q = (model(ids).logits[0].double() for model in (reference, target))
        p, q = z_p.softmax(-1), z_q.softmax(-1)
        kl = (p * (p / q).log()).sum(-1).mean()
        top1 = (z_p.argmax(-1) == z_q.argmax(-1)).double().mean()
        overlap = 1 - (p - q).abs().sum(-1).mean() / 2
        windows.append([float(kl), float(top1), float(overlap)])
    values = torch.tensor(windows, dtype=torch.float64)
    errors = values.std(0) / math.sqrt(len(values))
    return list(zip(values.mean(0).tolist(), errors.tolist(), strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_figures_are_those_of_the_formulas(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = build(family)
    target = build(family)
    with torch.no_grad():
        for parameter in target.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    stream = RandomTokens(7 * 16 + 1, 320)
    expected = in_float64(reference, target, stream, 16)
    for chunk in (2**24, 320 * 5):  # all at once; five tokens at a time
        monkeypatch.setattr(lazy_logits, "_CHUNK_LOGITS", chunk)
        one = measure_fidelity(reference, target, stream, 16, 3)
        figures = [(one.kl, one.kl_se), (one.top1, one.top1_se), (one.overlap, one.overlap_se)]
        for (value, se), (mean, error) in zip(figures, expected, strict=True):
            assert value == pytest.approx(mean, rel=1e-5, abs=1e-7)
            assert se == pytest.approx(error, rel=1e-4, abs=1e-7)
        assert (one.windows, one.tokens) == (7, 112)
        assert one.kl > 0.001


def test_a_model_is_wholly_faithful_to_itself() -> None:
    model = build("llama")
    one = measure_fidelity(model, model, RandomTokens(33, 320), 16, 16)
    assert (one.kl, one.kl_se, one.top1, one.top1_se) == (0.0, 0.0, 1.0, 0.0)
    assert one.overlap == pytest.approx(1.0, abs=1e-6)


def test_a_single_window_has_no_standard_error() -> None:
    one = measure_fidelity(build("llama"), build("llama"), RandomTokens(17, 320), 16, 16)
    assert (one.kl_se, one.top1_se, one.overlap_se) == (None, None, None)


def test_ids_of_probability_0_are_no_nan() -> None:
    z_p = torch.tensor([[0.0, -math.inf], [5.0, -1e4]])
    z_q = torch.tensor([[1.0, 1.0], [5.0, 5.0]])
    kl, top1, overlap = token_fidelity(z_p, z_q).T
    assert kl.tolist() == pytest.approx([math.log(2)] * 2)
    assert top1.tolist() == [1.0, 1.0]
    assert overlap.tolist() == pytest.approx([0.5, 0.5])


def test_other_vocabularies_and_too_little_text_are_refused() -> None:
    small, large = build("llama"), build("llama", vocab_size=336)
    with pytest.raises(DataError, match="the reference predicts 320 ids, the target 336"):
        measure_fidelity(small, large, RandomTokens(33, 320), 16, 16)
    with pytest.raises(DataError, match="has 16 tokens, one window needs 17"):
        measure_fidelity(small, small, RandomTokens(16, 320), 16, 16)


def test_the_dtype_of_a_directory_does_not_matter(tiny_reference: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_reference, dtype=torch.bfloat16)
    one = measure_fidelity(model, model, RandomTokens(33, model.config.vocab_size), 16, 16)
    assert (one.kl, one.top1) == (0.0, 1.0)
