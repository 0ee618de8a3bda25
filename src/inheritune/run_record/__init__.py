"""The type of run.json, the record of a run: its sections and the facts that follow from them."""
