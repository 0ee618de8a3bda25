"""Convert PyTorch checkpoints to safetensors. The only package that reads a pickle."""
