"""optimum, and transformers, which quantizes through it.

An optimum with a field `magr` of its own, such as a patched one, opens this run.
"""

from magr_gptq.toolkits.optimum.adapter import run_with_magr

__all__ = ["run_with_magr"]
