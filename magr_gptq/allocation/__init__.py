"""Bits where they count: what each width costs a layer, and the cheapest widths of a given size."""
