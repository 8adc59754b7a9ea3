"""The command `magr-gptq`."""
