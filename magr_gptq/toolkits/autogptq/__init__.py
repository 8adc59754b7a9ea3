"""AutoGPTQ. An AutoGPTQ with a field `magr` of its own, such as a patched one, calls these functions."""

from magr_gptq.toolkits.autogptq.adapter import count_tokens, quantize_layer, quantize_model

__all__ = ["count_tokens", "quantize_layer", "quantize_model"]
