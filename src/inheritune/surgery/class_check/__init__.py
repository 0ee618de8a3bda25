"""Checks of a cut model against the model's own transformers class."""
