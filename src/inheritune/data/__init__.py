"""Text in, token shards out: sources, tokenizer, split, shards, order and overlap."""
