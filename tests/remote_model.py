"""A small model in three shards to be read in parts, and what of it is compared."""

import json
from pathlib import Path

import numpy as np
from hub_server import INDEX, SHARDS
from safetensors.numpy import save_file

from inheritune.model_files.safetensors import read_header


def write_model(directory: Path, seed: int = 0) -> Path:
    """Three shards of two layers each, 64 KB a layer, and what else such a repository holds."""
    directory.mkdir()
    draw = np.random.default_rng(seed)
    weight_map = {}
    for number, shard in enumerate(SHARDS):
        tensors = {}
        for layer in (2 * number, 2 * number + 1):
            for name in ("attention", "mlp"):
                values = draw.standard_normal((64, 128), dtype=np.float32)
                tensors[f"model.layers.{layer}.{name}.weight"] = values
        save_file(tensors, directory / shard, {"format": "pt"})
        weight_map |= dict.fromkeys(tensors, shard)
    (directory / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    (directory / "config.json").write_text(json.dumps({"num_hidden_layers": 6, "seed": seed}))
    (directory / "tokenizer.json").write_text("{}" * 100)
    (directory / "added_tokens.json").write_text("")
    (directory / "LICENSE").write_text("free")
    (directory / "additional_chat_templates").mkdir()
    (directory / "additional_chat_templates" / "short.jinja").write_text("hello")
    for unwanted in ("pytorch_model.bin", "consolidated.safetensors", "m.gguf", ".gitattributes"):
        (directory / unwanted).write_bytes(b"unwanted")
    (directory / "original").mkdir()
    (directory / "original" / "params.json").write_text("{}")
    return directory


def ranges_of(directory, layers):
    """Where the first layers lie."""
    found = []
    for shard in SHARDS:
        for tensor in read_header(directory / shard)[0]:
            if int(tensor.name.split(".")[2]) < layers:
                found.append((shard, tensor.offset, tensor.size))
    return found


def equal(remote, repository, ranges):
    for name, first, size in ranges:
        ours = (remote.directory / name).read_bytes()[first : first + size]
        assert ours == (repository / name).read_bytes()[first : first + size]


def weights_sent(hub):
    return hub.sent(".safetensors")


def header_bytes(repository):
    return sum(8 + int.from_bytes((repository / s).read_bytes()[:8], "little") for s in SHARDS)
