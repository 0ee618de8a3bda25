"""A run followed live: on a page of this machine, or on a terminal."""
