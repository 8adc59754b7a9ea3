r"""The bits that auto-round's AutoScheme gives each layer, in the form of our plans' widths.

    python -m eval.studies.bits.autoscheme MODEL --calibration FILE --avg-bits 2.5,3 --out WIDTHS.json

Needs `pip install auto-round` next to transformers. Options are 2, 3, 4 and 8 bits, symmetric, at one group
size; windows, tokens and settings are AutoScheme's own but for the text. Writes {average: {"widths": {layer:
[bits, group size]}, "seconds": …}}; the seconds are those of all averages together.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any


def layer_configs(args: argparse.Namespace, averages: list[float], dataset: str) -> dict[float, Any]:
    """AutoScheme's choice for every average."""
    from auto_round import AutoRound, AutoScheme
    from auto_round.schemes import QuantizationScheme

    options = [QuantizationScheme(bits=b, group_size=args.group_size, sym=True) for b in (2, 3, 4, 8)]
    found = {}
    for average in averages:
        scheme = AutoScheme(
            avg_bits=average, options=options, nsamples=args.samples, seqlen=args.seqlen, dataset=dataset,
            device_map="cpu", enable_torch_compile=False,
        )  # fmt: skip
        start = time.perf_counter()
        rounder = AutoRound(
            str(args.model), scheme=scheme, iters=0, dataset=dataset, nsamples=args.samples,
            seqlen=args.seqlen, amp=False, device_map="cpu", enable_torch_compile=False,
        )  # fmt: skip
        rounder.post_init()
        found[average] = (rounder.layer_config, time.perf_counter() - start)
    return found


def main() -> None:
    """Write the widths of every average."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--avg-bits", required=True, help="with commas between")
    parser.add_argument("--group-size", type=int, default=-1)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--seqlen", type=int, default=256)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    text = args.calibration.read_text(encoding="utf-8")
    # in pieces of about two windows
    step = 10 * args.seqlen
    pieces = [{"text": text[start : start + step]} for start in range(0, len(text) - step, step)]
    with tempfile.TemporaryDirectory() as scratch:
        dataset = Path(scratch, "text.json")
        dataset.write_text(json.dumps(pieces[: 2 * args.samples]))
        found = layer_configs(args, [float(part) for part in args.avg_bits.split(",")], str(dataset))
    widths = {
        str(average): {
            "widths": {name: [c["bits"], c["group_size"]] for name, c in config.items() if c["bits"] < 16},
            "seconds": seconds,
        }
        for average, (config, seconds) in found.items()
    }
    args.out.write_text(json.dumps(widths, indent=1) + "\n")


if __name__ == "__main__":
    main()
