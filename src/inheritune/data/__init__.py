"""Turn text into token shards: sources, tokenizer, split, shards, order and overlap."""
