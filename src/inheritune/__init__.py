"""Inheritune: make a large language model small by inheriting its first layers and training on."""

__version__ = "0.1.0"
