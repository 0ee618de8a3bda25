import gzip
import json
import random
from pathlib import Path

import pytest

from inheritune.data.prepare_text import prepare_text
from inheritune.data.text_sample import sample_text
from inheritune.data.tokenizer import open_tokenizer
from inheritune.errors import DataError, Interrupted
from inheritune.recipe.data import Data


def never() -> bool:
    return False


def test_a_text_that_is_read_whole_is_counted_as_it_is_prepared(
    tiny_reference: Path, tiny_text: Path, tmp_path: Path
) -> None:
    data = Data(source=str(tiny_text), val_fraction=0.2, sample=0.7)
    tokenizer = open_tokenizer(tiny_reference)
    facts, ids = sample_text(data, tokenizer, never)
    tokens = prepare_text(data, tokenizer, 320, 16, tmp_path / "tokens")
    assert facts.is_whole
    assert facts.held_out(0.2) == (tokens.train.num_ids, tokens.val.num_ids)
    assert facts.tokens == len(ids) == tokens.train.num_ids + tokens.val.num_ids


@pytest.mark.parametrize("compressed", [False, True])
def test_the_rest_of_a_long_text_is_estimated_by_its_bytes(
    tiny_reference: Path, tmp_path: Path, compressed: bool
) -> None:
    draw = random.Random(0)
    texts = [" ".join(f"{draw.getrandbits(64):x}" for _ in range(20)) for _ in range(4000)]
    rows = [json.dumps({"text": text}) for text in texts]
    path = tmp_path / ("long.jsonl.gz" if compressed else "long.jsonl")
    content = "\n".join(rows).encode()
    path.write_bytes(gzip.compress(content) if compressed else content)
    tokenizer = open_tokenizer(tiny_reference)
    data = Data(source=str(path))
    exact = sample_text(data, tokenizer, never)[0].tokens
    facts, ids = sample_text(data, tokenizer, never, most_bytes=500_000)
    assert not facts.is_whole
    assert len(ids) < exact / 2
    assert facts.tokens == pytest.approx(exact, rel=0.1)


def test_a_blank_text_is_refused(tiny_reference: Path, tmp_path: Path) -> None:
    (tmp_path / "blank.txt").write_text(" \n")
    data = Data(source=str(tmp_path / "blank.txt"))
    with pytest.raises(DataError, match="there is no text in"):
        sample_text(data, open_tokenizer(tiny_reference), never)


def test_reading_stops_when_asked(tiny_reference: Path, tiny_text: Path) -> None:
    with pytest.raises(Interrupted):
        sample_text(Data(source=str(tiny_text)), open_tokenizer(tiny_reference), lambda: True)
