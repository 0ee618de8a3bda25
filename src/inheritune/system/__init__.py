"""Wrap what this machine offers: files, locks, processes, signals, devices."""
