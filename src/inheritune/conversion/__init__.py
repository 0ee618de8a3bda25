"""Convert PyTorch checkpoints and GGUF files; the only package that reads a pickle."""
