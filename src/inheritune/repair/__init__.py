"""Repair a cut before any training: fit the layers around each gap to the reference."""
