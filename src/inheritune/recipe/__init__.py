"""Recipes: every key, reading YAML, presets."""
