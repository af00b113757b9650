"""Labelled images -> trained, exported and published GoogLeNet. See `python -m pipeline --help`."""
