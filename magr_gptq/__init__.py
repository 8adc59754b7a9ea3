"""MagR for GPTQ toolkits: smaller weights before rounding, nothing added at inference.

`reduce` is the mathematics on tensors; `enable` teaches the installed toolkits `magr=True`.
Importing this package imports no toolkit and changes nothing.
"""

from importlib.metadata import version

from magr_gptq.config import MagRConfig
from magr_gptq.reduction.solver import Reduction, reduce
from magr_gptq.toolkits import NothingReducedError, SeamError, disable, enable, enabled

__version__ = version("magr-gptq")

__all__ = [
    "MagRConfig",
    "NothingReducedError",
    "Reduction",
    "SeamError",
    "__version__",
    "disable",
    "enable",
    "enabled",
    "reduce",
]
