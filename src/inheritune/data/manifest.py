"""What a token directory says of itself, put together."""

from typing import Any

from inheritune.data.shards import SHARD_VERSION, ShardEntry
from inheritune.data.tokenizer import TextTokenizer
from inheritune.data.tokens import MANIFEST_FORMAT, canonical_digest, fingerprint

__all__ = ["new_manifest"]


def new_manifest(
    tokenizer: TextTokenizer,
    rows: int,
    policy: dict[str, Any],
    split: dict[str, Any],
    entries: list[ShardEntry],
) -> dict[str, Any]:
    """The part of a manifest that fixes the content, with its fingerprints.

    Args:
        tokenizer: It made the ids.
        rows: Rows of the embedding.
        policy: BOS, EOS, and whether special tokens were looked for in text.
        split: How documents were held out.
        entries: Shards of both splits.
    """
    identity = {"sha256": tokenizer.sha256, "rows": tokenizer.rows}
    files = [entry.as_json() for entry in entries]
    content = {
        "format": MANIFEST_FORMAT,
        "shard_version": SHARD_VERSION,
        "tokenizer": identity,
        "embedding_rows": rows,
        "policy": policy,
        "split": split,
        "files": files,
    }
    held = [entry for entry in files if entry["name"].startswith("val-")]
    return content | {
        "fingerprint": fingerprint(content),
        "val_fingerprint": canonical_digest([identity, policy, held]),
    }
