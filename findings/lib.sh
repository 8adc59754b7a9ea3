# Sourced by every finding: an environment of its own, the header printed, the verdict returned.
#   install PACKAGE...   a fresh venv with torch first; FINDINGS_CACHE=DIR keeps venvs, one for each list
#   see <<'PY'           runs in that venv, in an empty folder; findings/finding.py is importable
# Exit status: 0 as stated, 1 the behaviour has changed, 2 the packages could not be installed.
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
TORCH=torch==2.13.0
# what GPTQ's users have in one environment; one list for many findings, so that a cache holds it once
TOOLKITS="gptqmodel==7.6.0 llmcompressor==0.14.0 optimum==2.3.0 peft==0.21.2 lm-eval==0.4.13 transformers==5.17.0
 numpy==2.2.6"
# other quantizers, which have no common pins with those
PEERS="brevitas==0.13.4 hqq==0.2.8.post1 neural-compressor-pt==3.10 nvidia-modelopt==0.47.0 amd-quark==0.13
 auto-round==0.16.1 transformers==5.17.0 accelerate==1.15.0"
PYTHON=${PYTHON:-python3.11}
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT

# quiet, offline, on the CPU: what a toolkit would fetch or draw says nothing about it
export CUDA_VISIBLE_DEVICES= HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 HF_HOME="$WORK/hf" TOKENIZERS_PARALLELISM=false
export GPTQMODEL_CPU_WORKERS=2 GPTQMODEL_DISABLE_PACK_EXT=1 LOGBAR_ANIMATION=0 TORCHDYNAMO_DISABLE=1
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-2} PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONPATH="$HERE" PYTHONWARNINGS=ignore

# the comment under the script's first line is the finding
sed -n '2,/^[^#]/{/^#/s/^# \{0,1\}//p}' "$0"
echo

install() {
  local kept=${FINDINGS_CACHE:-$WORK/venv} folder
  folder=$(mkdir -p "$kept" && cd "$kept" && pwd)/$(echo "$TORCH $*" | sha256sum | cut -c1-16)
  if [ ! -e "$folder/.installed" ]; then
    rm -rf "$folder"
    { "$PYTHON" -m venv "$folder" && echo "$TORCH" >"$folder/torch.txt" \
      && "$folder/bin/python" -m pip install -q --no-compile "$TORCH" \
      && "$folder/bin/python" -m pip install -q --no-compile -c "$folder/torch.txt" "$@" \
      && touch "$folder/.installed"; } >"$WORK/install.log" 2>&1 || { tail -20 "$WORK/install.log"; exit 2; }
  fi
  # a toolkit's sources are compiled once an environment, and nothing is written here
  export PYTHONPYCACHEPREFIX=$folder/pyc
  VENV=$folder
  cd "$WORK"
}

# finding.py writes to descriptor 3; what toolkits print is shown only where the script failed; 9 is its verdict
see() {
  local status=0
  "$VENV/bin/python" - 3>&1 >log 2>&1 || status=$?
  [ $status = 0 ] && return
  [ $status = 9 ] || { echo "CHANGED    the script ended with an error"; tail -15 log; }
  exit 1
}
