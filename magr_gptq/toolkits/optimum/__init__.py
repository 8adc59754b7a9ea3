"""optimum, and transformers, which quantizes through it."""
