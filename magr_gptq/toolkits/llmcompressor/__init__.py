"""llm-compressor: the modifier that recipes name."""

from magr_gptq.toolkits.llmcompressor.modifier import MagRGPTQModifier

__all__ = ["MagRGPTQModifier"]
