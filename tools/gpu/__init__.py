"""Measurements and checks on a GPU, in parts that fail alone; see `run`."""
