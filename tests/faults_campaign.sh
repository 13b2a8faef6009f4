#!/usr/bin/env bash
# faults_campaign.sh FAULTS_TEST [ARGUMENT...]: every fault at every place, a part of the places on each core; ends with
# the rows of docs/reliability.md, tries added up. Arguments go to the test program.
set -euo pipefail
program=$1 parts=${SAAZ_FAULTS_PARTS:-$(nproc)}
shift
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
jobs_of=() status=0
for ((i = 1; i <= parts; i++)); do
  SAAZ_FAULTS=all SAAZ_FAULTS_PART=$i/$parts "$program" --gtest_brief=1 "$@" >"$logs/$i" 2>&1 &
  jobs_of+=($!)
done
for ((i = 1; i <= parts; i++)); do
  wait "${jobs_of[i - 1]}" && continue
  status=1
  echo "== part $i of $parts failed"
  grep -v '^| ' "$logs/$i" | head -n 100
done
awk -F' [|] ' '/^[|] / { if (!($1 in tried)) order[n++] = $1; tried[$1] += $2; if (!($1 in lost) || $3 ~ /SEE/) lost[$1] = $3 }
  END { for (i = 0; i < n; i++) printf "%s | %d | %s |\n", order[i], tried[order[i]], lost[order[i]] }' "$logs"/*
exit $status
