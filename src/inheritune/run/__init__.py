"""Carry out a recipe from start to finish."""
