"""Verify models, tokens, checkpoints and runs."""
