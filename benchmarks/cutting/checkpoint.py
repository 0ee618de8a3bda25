"""Llama-shaped bf16 checkpoints of any size, and the digests of a checkpoint's tensors.

    python checkpoint.py make DIRECTORY SIZE
    python checkpoint.py digests DIRECTORY [--fp16]     # JSON: name -> [dtype, shape, SHA-256]

A program of its own, so that its memory is not the measuring process's.
"""

import hashlib
import json
import math
import sys
from pathlib import Path

import numpy as np

# Layers, width, MLP width, width of keys and values, heads, shards.
SIZES = {
    "full": (22, 2048, 5632, 256, 32, 3),  # TinyLlama-1.1B: 2.2 GB
    "small": (8, 1024, 2816, 128, 16, 3),  # 0.3 GB
}
_VOCAB = 32_000
_CHUNK = 2**24
_INDEX = "model.safetensors.index.json"


def make(directory: Path, size: str) -> None:
    """Write a checkpoint; the same bytes at every call."""
    directory.mkdir(parents=True)
    shapes = _shapes(size)
    total = sum(map(_bytes, shapes.values()))
    shards = SIZES[size][-1]
    names: list[list[str]] = [[] for _ in range(shards)]
    before = 0
    for name, shape in shapes.items():
        names[min(shards - 1, before * shards // total)].append(name)
        before += _bytes(shape)
    random = np.random.default_rng(0)
    weight_map = {}
    for number, held in enumerate(names, 1):
        file = f"model-{number:05}-of-{shards:05}.safetensors"
        _write_shard(directory / file, {name: shapes[name] for name in sorted(held)}, random)
        weight_map |= dict.fromkeys(held, file)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / _INDEX).write_text(json.dumps(index, indent=2), "utf-8")
    (directory / "config.json").write_text(json.dumps(_config(size), indent=2), "utf-8")


def digests(directory: Path, fp16: bool = False) -> dict[str, list[object]]:
    """Of every tensor that the index names, or every tensor of the only file.

    Args:
        directory: A model directory.
        fp16: Digests of bf16 tensors cast to fp16 instead.
    """
    index = directory / _INDEX
    wanted = json.loads(index.read_text("utf-8"))["weight_map"] if index.exists() else None
    found: dict[str, list[object]] = {}
    for path in sorted(directory.glob("*.safetensors")):
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            for name, entry in header.items():
                if wanted is not None and wanted.get(name) != path.name:
                    continue
                begin, end = entry["data_offsets"]
                file.seek(8 + length + begin)
                digest = hashlib.sha256()
                for start in range(begin, end, _CHUNK):
                    data = file.read(min(_CHUNK, end - start))
                    digest.update(_to_fp16(data) if fp16 else data)
                dtype = "F16" if fp16 else entry["dtype"]
                found[name] = [dtype, entry["shape"], digest.hexdigest()]
    return found


def _to_fp16(data: bytes) -> bytes:
    wide = np.frombuffer(data, "<u2").astype("<u4") << 16
    return wide.view("<f4").astype("<f2").tobytes()


def _shapes(size: str) -> dict[str, tuple[int, ...]]:
    layers, width, mlp, kv, _, _ = SIZES[size]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (_VOCAB, width)}
    for layer in range(layers):
        of_layer = {
            "input_layernorm": (width,),
            "mlp.down_proj": (width, mlp),
            "mlp.gate_proj": (mlp, width),
            "mlp.up_proj": (mlp, width),
            "post_attention_layernorm": (width,),
            "self_attn.k_proj": (kv, width),
            "self_attn.o_proj": (width, width),
            "self_attn.q_proj": (width, width),
            "self_attn.v_proj": (kv, width),
        }
        shapes |= {f"model.layers.{layer}.{part}.weight": s for part, s in of_layer.items()}
    return shapes | {"model.norm.weight": (width,), "lm_head.weight": (_VOCAB, width)}


def _bytes(shape: tuple[int, ...]) -> int:
    return 2 * math.prod(shape)


def _write_shard(
    path: Path, shapes: dict[str, tuple[int, ...]], random: np.random.Generator
) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + _bytes(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for start in range(0, end, _CHUNK):
            bits = random.integers(0, 2**16, min(_CHUNK, end - start) // 2, dtype=np.uint16)
            # Any sign and mantissa, one of two exponents: 2^-7 to 2^-5, finite in fp16 as well.
            file.write(((bits & 0x80FF) | 0x3C00).astype("<u2").tobytes())


def _config(size: str) -> dict[str, object]:
    layers, width, mlp, kv, heads, _ = SIZES[size]
    return {
        "architectures": ["LlamaForCausalLM"],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": width,
        "intermediate_size": mlp,
        "max_position_embeddings": 2048,
        "model_type": "llama",
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": kv * heads // width,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vocab_size": _VOCAB,
    }


if __name__ == "__main__":
    if sys.argv[1] == "make":
        make(Path(sys.argv[2]), sys.argv[3])
    else:
        print(json.dumps(digests(Path(sys.argv[2]), "--fp16" in sys.argv)))
