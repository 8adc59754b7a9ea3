"""Tuning a finished checkpoint: what the command line runs, in its own process, by torch and transformers."""
