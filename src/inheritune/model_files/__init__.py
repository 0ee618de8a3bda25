"""A Hugging Face model directory as data: headers, layers, config, copying. Loads no torch."""
