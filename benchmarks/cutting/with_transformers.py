"""Load, cut, save: `python with_transformers.py REFERENCE LAYERS OUT`, what people write today."""

import sys

from transformers import AutoModelForCausalLM

reference, layers, out = sys.argv[1], int(sys.argv[2]), sys.argv[3]
model = AutoModelForCausalLM.from_pretrained(reference, dtype="auto")
model.model.layers = model.model.layers[:layers]
model.config.num_hidden_layers = layers
model.save_pretrained(out)
