"""Make a trained reference the one that the package carries as embedded:demo.

    inheritune run recipes/demo-reference.yaml
    python scripts/embed_reference.py runs/demo-reference

Weights are rounded to bf16; the card, the ledger of the training and SHA-256 digests go along.
"""

import hashlib
import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from inheritune.data.tokens import open_tokens

OUT = Path(__file__).parents[1] / "src" / "inheritune" / "demo_reference"

CARD = """\
---
library_name: transformers
pipeline_tag: text-generation
license: apache-2.0
language: [code]
tags: [inheritune, demo]
---
# The demo's reference

A Llama of {layers} layers, width {width}, {params:,} parameters (bf16), with a byte-level BPE
tokenizer of {vocab} entries. It exists to be inherited from in `inheritune demo`, and is of no
other use.

- **Trained on** the Python sources of the standard library of CPython {python} (PSF licence),
  with its tests, without encodings and topic tables: {documents:,} modules, {train_tokens:,}
  tokens, passed over {epochs:.1f} times: {tokens:,} training tokens, {flops:.2e} FLOPs,
  {minutes:.0f} minutes on two CPU cores, by `recipes/demo-reference.yaml`.
- **Held out**: {val_documents} modules, {val_tokens:,} tokens, chosen by a hash of the module's
  path, so that they are the same on every Python version; never a test. Share of their 13-grams
  of tokens that also occur in the training text: {overlap:.1%}.
- **Validation loss** {val_loss:.4f} ± {val_loss_se:.4f} nats per token before rounding to bf16.
{depth}
- **Digests**: `SHA256SUMS`. **Cost and loss curve of the training**: `training.json`.
"""


def main(run: Path) -> None:
    source = run / "reference" / "model"
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    weights = load_file(source / "model.safetensors")
    rounded = {name: tensor.to(torch.bfloat16) for name, tensor in weights.items()}
    save_file(rounded, OUT / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text()) | {"dtype": "bfloat16"}
    (OUT / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    (OUT / "tokenizer.json").write_text(
        json.dumps(tokenizer, ensure_ascii=False, separators=(",", ":")) + "\n"
    )
    shutil.copyfile(source / "tokenizer_config.json", OUT / "tokenizer_config.json")
    training = json.loads((source / "training.json").read_text())
    (OUT / "training.json").write_text(json.dumps(training, indent=1) + "\n")
    (OUT / "README.md").write_text(card(run, config, training, weights))
    for path in OUT.iterdir():
        path.chmod(0o644)
    sums = [f"{digest(path)}  {path.name}\n" for path in sorted(OUT.iterdir())]
    (OUT / "SHA256SUMS").write_text("".join(sums))
    size = sum(path.stat().st_size for path in OUT.iterdir())
    print(f"{OUT}: {size / 1e6:.2f} MB")


def card(run: Path, config: dict, training: dict, weights: dict) -> str:
    record = json.loads((run / "run.json").read_text())
    tokens = open_tokens(run / "tokens").summary()
    half_depth = run / "variants" / "half-depth" / "4-layers" / "result.json"
    depth = ""
    if half_depth.exists():
        half = json.loads(half_depth.read_text())["result"]
        gap = half["difference"]
        depth = (
            f"- **Depth pays**: a model of {half['layers']} layers, trained from scratch on the "
            f"same tokens in the same order, ends {gap:.4f} ± {half['difference_se']:.4f} nats "
            "higher (paired over windows)."
        )
    return CARD.format(
        layers=config["num_hidden_layers"],
        width=config["hidden_size"],
        vocab=config["vocab_size"],
        params=sum(tensor.numel() for tensor in weights.values()),
        python=record["versions"]["python"],
        documents=tokens["documents"],
        train_tokens=tokens["train_tokens"],
        epochs=training["tokens"] / tokens["train_tokens"],
        tokens=training["tokens"],
        flops=training["flops"],
        minutes=training["seconds"] / 60,
        val_documents=tokens["val_documents"],
        val_tokens=tokens["val_tokens"],
        overlap=tokens["overlap"]["share"],
        val_loss=training["val_loss"],
        val_loss_se=training["val_loss_se"],
        depth=depth,
    )


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
