"""Model directories with PyTorch weights."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_models
import torch


@pytest.fixture
def pickled(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes a tiny model as ``pytorch_model.bin``, or as sharded files."""

    def write(family: str = "llama", shards: int = 1, legacy: bool = False) -> Path:
        directory = tmp_path / family
        directory.mkdir()
        model = tiny_models.build(family)
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(directory)
        state = model.state_dict()  # a tied head and its embedding share their storage
        if shards == 1:
            file = directory / "pytorch_model.bin"
            torch.save(state, file, _use_new_zipfile_serialization=not legacy)
            return directory
        weight_map = {}
        for number in range(shards):
            name = f"pytorch_model-{number + 1:05}-of-{shards:05}.bin"
            part = dict(list(state.items())[number::shards])
            torch.save(part, directory / name, _use_new_zipfile_serialization=not legacy)
            weight_map |= dict.fromkeys(part, name)
        index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
        (directory / "pytorch_model.bin.index.json").write_text(json.dumps(index))
        return directory

    return write
