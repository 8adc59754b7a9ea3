#!/usr/bin/env bash
# Wheels of what a GPU machine with torch, Triton and transformers lacks, for `tools/gpu/run.sh`, which has no network:
#
#     tools/gpu/wheels.sh [FOLDER]        runs/gpu-wheels without one
#
# PYTHON must be of the GPU machine's version, as some of them are compiled. This package's own wheel says its version;
# the kit runs the code of the working tree.
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=${1:-runs/gpu-wheels}
names=(gptqmodel device-smi pypcre tokenicer logbar datasets dill multiprocess torchao defuser
  llmcompressor compressed-tensors loguru accelerate psutil pydantic pydantic_core annotated-types typing-inspection)
mkdir -p "$folder"
for name in "${names[@]}"; do
  ${PYTHON:-python3} -m pip wheel --no-deps --wheel-dir "$folder" "$(grep -i "^$name==" requirements/modern.txt)"
done
${PYTHON:-python3} -m pip wheel --no-deps --wheel-dir "$folder" .
du -sh "$folder"
