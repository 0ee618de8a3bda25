"""Check a cut model against the model's own transformers class, in a child process."""
