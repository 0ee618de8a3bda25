"""The first layers of a reference as a new model directory, and the proof that it is whole."""
