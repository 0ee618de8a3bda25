"""Analyse a model: rank and mass of its attention, importance of its layers."""
