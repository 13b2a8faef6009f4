#!/usr/bin/env bash
# The load campaign of docs/serving.md on the tiny model, all on loopback:
#   tests/serve/stress.sh BUILD_DIR [MODE[:N]...]      streams disconnects soak slow bad drain; a seed in SEED repeats one
# drain starts and ends the server N times.
# Prints a line of figures for each mode; status 1 when a promise does not hold.
set -euo pipefail
readonly build=$1 root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
shift
(($#)) || set -- streams disconnects soak slow bad drain:50
work=$(mktemp -d)
readonly work
server=0 status=0
finish() {
  ((server == 0)) || kill -9 "$server" 2>/dev/null
  rm -rf "$work"
}
trap finish EXIT

# a server, one mode against it, its end
try_once() {
  local name=$1 n=$2 port line
  mkfifo "$work/ready"
  "$build/saaz" --json serve --model "$root/data/try/model" --port 0 --context 256 --max-waiting 1024 >"$work/ready" 2>"$work/log" &
  server=$!
  read -r line <"$work/ready"
  rm "$work/ready"
  port=$(sed -nE 's/.*"address": "[^"]*:([0-9]+)".*/\1/p' <<<"$line")
  # shellcheck disable=SC2086
  "$build/tests/serve_stress" "$port" "$server" "$name" $n || status=1
  [[ $name == drain ]] || kill -TERM "$server"  # a second signal would end it at once
  wait "$server" || { echo "the server ended with status $?: $(tail -n2 "$work/log")"; status=1; }
  server=0
}

for mode in "$@"; do
  name=${mode%%:*} n=${mode#"$name"}
  if [[ $name == drain ]]; then
    for ((i = 0; i < ${n#:}; ++i)); do try_once drain ''; done
  else
    try_once "$name" "${n#:}"
  fi
done
exit $status
