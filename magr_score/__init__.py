"""How well a checkpoint does, measured by processes that never import magr_gptq."""
