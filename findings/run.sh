#!/usr/bin/env bash
# Runs all findings, or those named: findings/run.sh [NAME...]; prints each one's verdict and seconds.
# Environments are kept between findings, and removed at the end unless FINDINGS_CACHE=DIR is given.
# Exit status: 0 all as stated, 1 otherwise.
set -uo pipefail
cd "$(dirname "$0")"
if [ -z "${FINDINGS_CACHE:-}" ]; then
  FINDINGS_CACHE=$(mktemp -d)
  trap 'rm -rf "$FINDINGS_CACHE"' EXIT
fi
export FINDINGS_CACHE

[ $# -gt 0 ] || set -- $(ls ./*.sh | sed 's|^\./||; s|\.sh$||' | grep -vx -e lib -e run)
changed=0 table=
for name in "$@"; do
  echo "== $name"
  start=$SECONDS status=0
  bash "$name.sh" || status=$?
  case $status in 0) verdict="as stated" ;; 2) verdict="not installed" ;; *) verdict=CHANGED ;; esac
  [ $status = 0 ] || changed=1
  line=$(printf '%-36s %-14s %5d s' "$name" "$verdict" $((SECONDS - start)))
  table+=$line$'\n'
  echo "$line"
  echo
done
printf '%s' "$table"
exit $changed
