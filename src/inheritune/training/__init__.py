"""Train a model: the loop, its loss and optimizer, its checkpoints and settings."""
