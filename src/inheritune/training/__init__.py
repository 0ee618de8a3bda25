"""The training loop, its loss, optimizer, saved state and settings."""
