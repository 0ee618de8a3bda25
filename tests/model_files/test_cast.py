"""Values are cast exactly as torch casts them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inheritune.errors import SourceError
from inheritune.model_files.cast import FLOATING, cast

TORCH = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def bytes_of(tensor):
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def values(dtype, data):
    return torch.frombuffer(bytearray(data), dtype=TORCH[dtype])


@pytest.mark.parametrize("target", FLOATING)
def test_every_bf16_and_fp16_value_is_cast_as_torch_casts_it(target):
    for source in ("BF16", "F16"):
        every = torch.arange(65536, dtype=torch.int32).to(torch.uint16).view(TORCH[source])
        small = every[~(every.float().abs() > 65000)] if target == "F16" else every
        got, wanted = values(target, cast(bytes_of(small), source, target)), small.to(TORCH[target])
        assert torch.equal(got.isnan(), wanted.isnan())
        assert torch.equal(got[~got.isnan()], wanted[~got.isnan()])


@given(st.lists(st.floats(width=32, min_value=-(2.0**100), max_value=2.0**100), min_size=1))
def test_fp32_is_rounded_to_bf16_as_torch_rounds_it(numbers):
    tensor = torch.tensor(numbers, dtype=torch.float32)
    assert cast(bytes_of(tensor), "F32", "BF16") == bytes_of(tensor.to(torch.bfloat16))


@given(st.floats(min_value=-(2.0**100), max_value=2.0**100))
def test_fp64_is_rounded_to_bf16_once_and_not_twice(number):
    got = values("BF16", cast(bytes_of(torch.tensor([number], dtype=torch.float64)), "F64", "BF16"))
    distance = abs(got.double().item() - number)
    bits = got.view(torch.int16)
    neighbours = torch.stack([bits - 1, bits + 1]).view(torch.bfloat16).double()
    assert all(distance <= abs(n.item() - number) for n in neighbours if n.isfinite())


def test_a_halfway_case_that_double_rounding_would_get_wrong_is_right():
    number = 1 + 2.0**-8 + 2.0**-40  # just above the middle of two neighbours in bf16
    data = bytes_of(torch.tensor([number, -number], dtype=torch.float64))
    assert values("BF16", cast(data, "F64", "BF16")).tolist() == [1 + 2.0**-7, -1 - 2.0**-7]


def test_a_value_too_large_for_the_dtype_is_refused_and_infinity_is_kept():
    with pytest.raises(SourceError, match=r"w holds 70000, too large for F16"):
        cast(bytes_of(torch.tensor([1.0, 70000.0])), "F32", "F16", "w")
    infinite = torch.tensor([float("inf"), -float("inf")])
    assert values("F16", cast(bytes_of(infinite), "F32", "F16")).tolist() == infinite.tolist()
