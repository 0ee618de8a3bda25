"""Validation loss, text samples, and tasks asked by lm-eval."""
