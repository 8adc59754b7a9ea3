"""How well a checkpoint does, measured by processes that never import magr_gptq.

`python -I -m magr_score` is the way in; see `magr_score.__main__`.
"""
