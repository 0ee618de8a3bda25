"""Files, processes, signals and devices of this machine."""
