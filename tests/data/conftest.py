import random
from pathlib import Path

import pytest

from inheritune.data.tokenizer import TextTokenizer, open_tokenizer, train_tokenizer

WORDS = "the of and a to in he have it that for they with as not on she at by this we you do but"


def _story(seed: int, words: int = 200) -> str:
    chooser = random.Random(seed)
    return " ".join(chooser.choice(WORDS.split()) for _ in range(words)) + ".\n"


@pytest.fixture(scope="session")
def stories() -> list[str]:
    return [_story(seed) for seed in range(60)]


@pytest.fixture(scope="session")
def tokenizer(stories: list[str], tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    directory = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(stories, 300, directory)
    return open_tokenizer(directory)


@pytest.fixture
def text_folder(stories: list[str], tmp_path: Path) -> Path:
    folder = tmp_path / "text"
    folder.mkdir()
    for number, story in enumerate(stories):
        (folder / f"{number:03d}.txt").write_text(story)
    return folder
