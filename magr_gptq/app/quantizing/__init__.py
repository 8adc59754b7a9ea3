"""Quantizing a whole model with a real toolkit: what the command line runs, in a process of its own."""
