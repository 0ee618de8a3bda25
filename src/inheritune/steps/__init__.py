"""The steps of a run: each skipped when its result is there and fits, else done and written.

So continuing a run is running it again.
"""
