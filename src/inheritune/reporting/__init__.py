"""What a run found, as a sentence, tables, charts and one self-contained page."""
