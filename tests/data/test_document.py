import hashlib
from itertools import pairwise

import pytest

from inheritune.data.document import Document, held_out, sampled
from inheritune.recipe.data import Data

DOCUMENTS = [Document(f"name {i}", f"text {i} ü") for i in range(4000)]


def share(rule):
    return [document.text for document in DOCUMENTS if rule(document)]


def test_a_sample_is_the_documented_hash_of_the_text():
    for document in DOCUMENTS[:200]:
        digest = hashlib.sha256(b"inheritune-sample-1:" + document.text.encode()).digest()
        is_below = int.from_bytes(digest[:8], "little") < 0.3 * 2**64
        assert sampled(document, 0.3) is is_below
        assert sampled(Document("other", document.text), 0.3) is is_below


def test_a_larger_sample_contains_the_smaller():
    shares = [0.001, 0.01, 0.1, 0.5, 1.0]
    found = [set(share(lambda d, s=s: sampled(d, s))) for s in shares]
    assert all(small < large for small, large in pairwise(found))
    assert len(found[-1]) == len(DOCUMENTS)
    assert [len(texts) / 4000 for texts in found] == pytest.approx(shares, rel=0.1, abs=0.005)
    assert share(lambda d: sampled(d, None)) == share(lambda d: True)


def test_a_sample_says_nothing_about_what_is_held_out():
    data = Data(source="x", sample=0.2, val_fraction=0.2)
    inside = [held_out(d, data) for d in DOCUMENTS if sampled(d, data.sample)]
    assert sum(inside) / len(inside) == pytest.approx(0.2, abs=0.04)
