"""GPTQModel. A GPTQModel with a field `magr` of its own, such as a patched one, calls these two functions."""

from magr_gptq.toolkits.gptqmodel.adapter import quantize_layer, quantize_model

__all__ = ["quantize_layer", "quantize_model"]
