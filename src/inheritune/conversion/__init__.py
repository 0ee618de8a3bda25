"""PyTorch checkpoints as safetensors model directories. The only room that reads a pickle."""
