"""List the models to train, as plain numbers from which every program builds its own."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Shape:
    """A model and a batch.

    Attributes:
        name: For the table.
        kind: ``"gpt2"`` or ``"llama"``.
        vocab: Rows of the embedding.
        layers: How many.
        width: Of the hidden states.
        heads: Of attention, as many for keys and values.
        inner: Width of the feed-forward.
        batch: Sequences per step.
        length: Tokens per sequence.
        tied: Whether the head is the embedding.
    """

    name: str
    kind: str
    vocab: int
    layers: int
    width: int
    heads: int
    inner: int
    batch: int
    length: int
    tied: bool

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def tokens(self) -> int:
        """Tokens of a step."""
        return self.batch * self.length


SHAPES = {
    "a": Shape("a GPT-2 of 8 layers", "gpt2", 8192, 8, 384, 6, 1536, 4, 256, True),
    "b": Shape("a Llama of 6 layers", "llama", 32000, 6, 512, 8, 1376, 4, 256, False),
    "c": Shape("GPT-2 small", "gpt2", 50257, 12, 768, 12, 3072, 1, 512, True),
    # Widths and vocabulary of SmolLM2-135M, a fifth of its layers.
    "s": Shape("a Llama of 4 layers", "llama", 49152, 4, 576, 9, 1536, 2, 512, True),
    "demo": Shape("the demo's Llama", "llama", 2048, 8, 160, 5, 416, 16, 128, True),
    "tiny": Shape("a tiny GPT-2", "gpt2", 320, 2, 32, 4, 128, 4, 32, True),
}
GPU_SHAPES = {
    "openllama-3b": Shape(
        "13 layers of OpenLLaMA-3B", "llama", 32000, 13, 3200, 32, 8640, 8, 2048, False
    ),
    "gpt2-medium": Shape("GPT-2 medium", "gpt2", 50257, 24, 1024, 16, 4096, 16, 1024, True),
}
TINY_GPU_SHAPES = {
    "tiny-llama": Shape("a tiny Llama", "llama", 320, 2, 32, 4, 48, 4, 32, False),
    "tiny": SHAPES["tiny"],
}


def config(shape: Shape, **changes: Any) -> Any:
    """The shape as transformers knows it, dropout as in its published configs."""
    from transformers import GPT2Config, LlamaConfig

    if shape.kind == "gpt2":
        return GPT2Config(
            vocab_size=shape.vocab,
            n_embd=shape.width,
            n_layer=shape.layers,
            n_head=shape.heads,
            n_inner=shape.inner,
            n_positions=max(shape.length, 1024),
            bos_token_id=0,
            eos_token_id=0,
            **changes,
        )
    return LlamaConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        max_position_embeddings=max(shape.length, 2048),
        tie_word_embeddings=shape.tied,
        **changes,
    )


def without_dropout(shape: Shape) -> Any:
    """The same config, nothing dropped."""
    plain = config(shape)
    for key in vars(plain):
        if key.endswith(("pdrop", "dropout")):
            setattr(plain, key, 0.0)
    return plain
