#!/usr/bin/env bash
# compressed-tensors changed how 3, 5, 6 and 7 bits are packed, and no release reads the other's files rightly.
#
# Guess:  "pack-quantized" is one format; a file that one release wrote is read by every later one, or refused.
# Seen:   0.16 puts as many whole codes into a word of 32 bits as fit, 0.20 lets codes cross words. Codes of 2, 4 and
#         8 bits come back both ways. Those of 3, 5, 6 and 7 bits come back wrong without an error, old to new and new
#         to old; the format's name in config.json is the same.
# Why:    a 3-bit checkpoint from llm-compressor before the change reads as noise after it, in vLLM as elsewhere.
# Ours:   the run's log names the release at these widths; the docs say which are safe.
. "$(dirname "$0")/lib.sh"
cat >"$WORK/codes.py" <<'PY'
import sys

import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32
from finding import expect, raised, versions

WIDTHS = range(2, 9)


def codes(width):
    return torch.randint(-(2 ** (width - 1)), 2 ** (width - 1), (16, 960), generator=torch.Generator().manual_seed(0)).to(torch.int8)


def write(name):
    versions("compressed-tensors")
    torch.save({width: pack_to_int32(codes(width), width) for width in WIDTHS}, name)


def read(name):
    """Per width: 'same', 'wrong' or the error."""
    seen = {}
    for width, packed in torch.load(name).items():
        error = raised(unpack_from_int32, packed, width, (16, 960))
        right = not error and torch.equal(unpack_from_int32(packed, width, (16, 960)).to(torch.int8), codes(width))
        seen[width] = error or ("same" if right else "wrong")
    return seen
PY
OLD="compressed-tensors==0.16.0 transformers==5.17.0 psutil==7.2.2"  # it imports psutil and does not ask for it
NEW="compressed-tensors==0.20.0 transformers==5.17.0"
install $OLD
see <<<'import codes; codes.write("old")'
install $NEW
see <<'PY'
from codes import expect, read, write

write("new")
seen = read("old")
print(seen)
expect("0.20 reads what 0.16 wrote", seen, [w for w in seen if seen[w] == "same"] == [2, 4, 8])
PY
install $OLD
see <<'PY'
from codes import expect, read

seen = read("new")
expect("0.16 reads what 0.20 wrote", seen, [w for w in seen if seen[w] == "same"] == [2, 4, 8])
PY
