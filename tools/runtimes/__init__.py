"""What loads our checkpoints: each consumer in an environment of its own; see `tools.runtimes.__main__`."""
