#!/usr/bin/env bash
# The GPU kit: one command of at most 8 minutes, which needs CUDA torch, Triton and transformers, and no network.
#
#     tools/gpu/run.sh --out OUT [--models FOLDER ...]      on a GPU
#     tools/gpu/run.sh --out OUT --dry                      on a CPU, tiny, in a minute: does the kit itself work?
#
# What is missing comes from WHEELS, which tools/gpu/wheels.sh has filled. `python -m tools.gpu.run` tells the rest.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
wheels=${WHEELS:-$root/runs/gpu-wheels}
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
if compgen -G "$wheels/*.whl" > /dev/null; then
  packages=$(mktemp -d)
  trap 'rm -rf "$packages"' EXIT
  ${PYTHON:-python3} -m pip install --quiet --no-index --no-deps --no-compile --target "$packages" "$wheels"/*.whl
  export PYTHONPATH=$root:$packages
fi
${PYTHON:-python3} -m tools.gpu.run "$@"
