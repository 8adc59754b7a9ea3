#!/usr/bin/env bash
# GPTQModel's `dynamic`: a pattern with "-:" wins wherever it stands, and "+:q_proj" matches nothing.
#
# Guess:  the first pattern that matches a layer decides, as in a list of rules; "+:q_proj" is every q_proj.
# Seen:   a "-:" pattern excludes its layers also where an earlier "+:" pattern names them. Patterns are matched from
#         the start of the full name: without ".*" before it, q_proj matches no layer, and nothing says so.
# Why:    "these layers at 8 bits, leave out the rest" leaves out all; a plan whose patterns match nothing
#         runs to its end and saves a model of the default bits.
# Ours:   a pattern that sets magr and reaches no layer is told of in the log, and in the run's warning.
. "$(dirname "$0")/lib.sh"
install $TOOLKITS
see <<'PY'
from finding import expect, versions
from gptqmodel import QuantizeConfig

versions("gptqmodel")
name = "model.layers.0.self_attn.q_proj"


def bits(*patterns):
    """The bits of q_proj, False where it is left out."""
    dynamic = {pattern: {"bits": 8} if pattern.startswith("+") else {} for pattern in patterns}
    return QuantizeConfig(bits=4, dynamic=dynamic).dynamic_get(name, "bits", 4)


seen = bits("+:.*q_proj", "-:.*self_attn.*")
expect("8 bits for q_proj, then -: for all of attention", seen, seen is False)
seen = bits("-:.*self_attn.*", "+:.*q_proj")
expect("the same in the other order", seen, seen is False)
seen = bits("+:q_proj")
expect('8 bits by "+:q_proj"', seen, seen == 4)
seen = bits("+:.*q_proj")
expect('8 bits by "+:.*q_proj"', seen, seen == 8)
PY
