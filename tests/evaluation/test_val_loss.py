import math

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from inheritune.data.tokens import TokenDirectory
from inheritune.errors import DataError, Interrupted
from inheritune.evaluation.val_loss import ValLoss, measure_val_loss, paired_difference
from inheritune.system.signals import StopFlag


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=320, num_attention_heads=4, **small))


def test_val_loss_is_the_cross_entropy_of_every_window(
    model: LlamaForCausalLM, tiny_tokens: TokenDirectory
) -> None:
    found = measure_val_loss(model, tiny_tokens.val, seq_len=16, batch_size=4)
    ids = torch.from_numpy(tiny_tokens.val.ids(0, tiny_tokens.val.num_ids))
    windows = tiny_tokens.val.num_samples(16)
    assert found.tokens == windows * 16
    for window in (0, windows // 2, windows - 1):
        sample = ids[window * 16 : window * 16 + 17].unsqueeze(0)
        with torch.no_grad():
            scores = model(input_ids=sample[:, :-1]).logits.log_softmax(-1)
        expected = -scores[0].gather(1, sample[0, 1:, None]).mean()
        assert found.per_window[window] == pytest.approx(float(expected), abs=1e-6)
    assert found.mean == found.per_window.mean()


def test_val_loss_is_the_same_to_the_last_bit_when_measured_twice(
    model: LlamaForCausalLM, tiny_tokens: TokenDirectory
) -> None:
    one, two = (measure_val_loss(model, tiny_tokens.val, 16, 4) for _ in range(2))
    assert np.array_equal(one.per_window, two.per_window)


def test_the_standard_error_is_that_of_the_mean_over_windows() -> None:
    assert ValLoss(np.array([1.0, 2.0, 3.0]), 3).se == pytest.approx(1 / math.sqrt(3))
    assert math.isnan(ValLoss(np.array([1.0]), 1).se)


def test_pairing_removes_what_is_hard_for_both() -> None:
    reference = np.array([1.0, 5.0, 9.0])
    assert paired_difference(reference + 0.25, reference) == (0.25, 0.0)


def test_less_than_one_window_is_refused_with_the_numbers(
    model: LlamaForCausalLM, tiny_tokens: TokenDirectory
) -> None:
    count = tiny_tokens.val.num_ids
    with pytest.raises(DataError, match=f"{count} tokens, one window needs {count + 2}") as error:
        measure_val_loss(model, tiny_tokens.val, seq_len=count + 1, batch_size=4)
    assert error.value.exit_code == 3


def test_measure_val_loss_stops_when_asked(
    model: LlamaForCausalLM, tiny_tokens: TokenDirectory
) -> None:
    stop = StopFlag()
    stop.signal_number = 15
    with pytest.raises(Interrupted):
        measure_val_loss(model, tiny_tokens.val, 16, 4, stop)
