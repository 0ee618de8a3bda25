"""Estimate sizes, memory, time and cost of a cut or a run before it is begun."""
