"""Targets: the file each runtime reads, how it is run, measured and verified."""
