"""Each surgery writes the same bytes as ever, down to the order of keys in its record."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from inheritune import __version__
from inheritune.model_files.directory import ModelDirectory, open_model
from inheritune.surgery.cut import Options, inherit
from inheritune.surgery.grow import grow
from inheritune.surgery.half_width import half_width
from inheritune.surgery.stack import stack

_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}


def counted_llama(directory: Path) -> ModelDirectory:
    """A Llama of 4 layers whose weights depend on no library's random numbers."""
    shapes = {"model.embed_tokens.weight": (32, 16), "model.norm.weight": (16,)}
    for layer in range(4):
        prefix = f"model.layers.{layer}."
        shapes |= {f"{prefix}self_attn.{x}_proj.weight": (16, 16) for x in "qkvo"}
        shapes |= {f"{prefix}mlp.{x}_proj.weight": (24, 16) for x in ("gate", "up")}
        shapes |= {f"{prefix}mlp.down_proj.weight": (16, 24)}
        shapes |= {f"{prefix}{x}_layernorm.weight": (16,) for x in ("input", "post_attention")}
    shapes["lm_head.weight"] = (32, 16)
    directory.mkdir()
    start, tensors = 0, {}
    for name, shape in shapes.items():
        numbers = np.arange(start, start + np.prod(shape))
        tensors[name] = ((numbers % 251 - 125) / 1000).astype(np.float32).reshape(shape)
        start += 7
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    (directory / "config.json").write_text(json.dumps(_CONFIG))
    (directory / "generation_config.json").write_text('{"bos_token_id": 0}')
    return open_model(str(directory))


def digest_of(directory: Path) -> str:
    total = hashlib.sha256()
    version = f'"inheritune": "{__version__}"'.encode()
    for path in sorted(directory.rglob("*")):
        data = path.read_bytes().replace(version, b'"inheritune": "VERSION"')
        total.update(f"{path.relative_to(directory).as_posix()} {len(data)}\n".encode() + data)
    return total.hexdigest()[:16]


def write(name: str, reference: ModelDirectory, out: Path) -> None:
    if name == "grow":
        target = inherit(reference, 2, out.with_name("small"), Options(dtype="bf16"))
        grow(target, reference, 4, out)
    elif name == "stack":
        stack(reference, reference, 4, out)
    elif name == "half-width":
        half_width(reference, out)
    else:
        layers, options = _CUTS[name]
        inherit(reference, layers, out, options)


_CUTS = {
    "first": (2, Options()),
    "all": (4, Options()),
    "moved": ([0, 2, 3], Options()),
    "cast": (3, Options(dtype="fp16", sha256=True)),
}


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("first", "2a09e1121d4b8859"),
        ("all", "ba18c4169e17cb45"),
        ("moved", "0563ec987f2f3659"),
        ("cast", "db1cd116af9e732d"),
        ("grow", "91ab60d24613c358"),
        ("stack", "c8cbc68525a4af03"),
        ("half-width", "a0217ab4dd8fdda5"),
    ],
)
def test_a_surgery_writes_the_bytes_it_always_wrote(tmp_path, name, digest):
    write(name, counted_llama(tmp_path / "reference"), tmp_path / "out")
    assert digest_of(tmp_path / "out") == digest
