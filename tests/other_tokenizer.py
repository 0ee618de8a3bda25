"""A tokenizer that splits text as newer models do, which classes of older ones read otherwise."""

import json
from functools import cache
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from inheritune.surgery.class_check.tokenizer_ids import PROBES

ROWS = 500
_SPLIT = (  # of GPT-4 and many after it
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@cache
def tokenizer_json() -> str:
    """Train it on the probe texts, so that they are where classes differ."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=ROWS,
        special_tokens=["<|begin|>", "<|endoftext|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(PROBES * 9, trainer)
    return str(tokenizer.to_str())


def write_tokenizer(
    directory: Path, model_type: str = "", content: str = "", **config: object
) -> Path:
    """Write it, with a config.json of nothing but a model type where one is named."""
    (directory / "tokenizer.json").write_text(content or tokenizer_json(), "utf-8")
    if model_type:
        (directory / "config.json").write_text(json.dumps({"model_type": model_type}))
    tokens = {"bos_token": "<|begin|>", "eos_token": "<|endoftext|>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(tokens | config))
    return directory
