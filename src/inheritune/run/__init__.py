"""Carrying out a recipe from start to end."""
