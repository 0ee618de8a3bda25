"""Validation loss and text samples."""
