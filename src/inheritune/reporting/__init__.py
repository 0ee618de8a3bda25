"""Report a run: one sentence, tables, charts, and a page that needs no other file."""
