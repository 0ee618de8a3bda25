"""Proofs that a directory is what it claims to be."""
