"""Measure models: validation loss, text samples, and tasks asked by lm-eval."""
