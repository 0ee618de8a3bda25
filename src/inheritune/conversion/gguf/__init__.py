"""Turn a GGUF file of llama.cpp into a model directory."""
