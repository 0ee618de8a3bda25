"""Do the steps of a run; each is skipped when its result is there and fits.

Continuing a run is therefore running it again.
"""
