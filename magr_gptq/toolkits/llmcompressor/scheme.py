"""What a weight scheme of compressed-tensors means to MagR."""

from __future__ import annotations

from compressed_tensors.quantization import QuantizationArgs, QuantizationStrategy
from torch import Tensor

from magr_gptq.toolkits.layer_step import descending_order


def require_integer_grid(args: QuantizationArgs, where: str) -> None:
    """Raise ValueError where a row's largest magnitudes don't set the step of an even grid."""
    if args.type != "int":
        wrong, remedy = f"type={args.type!r}", "MagR needs an even grid: use type='int'"
    elif args.num_bits not in range(2, 9):
        wrong, remedy = f"num_bits={args.num_bits}", "use 2 to 8"
    elif args.strategy not in ("channel", "group"):
        wrong = f"strategy={QuantizationStrategy(args.strategy).value!r}"
        remedy = "MagR needs scales that belong to one row: use 'channel' or 'group'"
    else:
        return
    raise ValueError(f"magr: the weights of {where} have {wrong}; {remedy}, or magr=False")


def grid_of(args: QuantizationArgs) -> tuple[int, int]:
    """Bits and group size, −1 for the whole row."""
    return args.num_bits, args.group_size if args.strategy == "group" else -1


def order_of(args: QuantizationArgs, hessian: Tensor) -> Tensor | None:
    """With actorder columns are rounded in this order, but groups stay those of the original order."""
    if not args.actorder or args.strategy == "group":
        return None
    return descending_order(hessian, dead=0.0)
