"""The command line and what it runs: quantizing, comparing, inspecting models."""
