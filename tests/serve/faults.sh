#!/usr/bin/env bash
# The faults of serving (docs/serving.md) on the tiny model, all on loopback:
#   tests/serve/faults.sh BUILD_DIR [MODE[:N]...]      overload fair greedy swap poison restart memory
# restart: killed and started N times; memory: N failing allocations. A line of figures for each; status 1 when a promise
# does not hold. Needs the targets saaz and serve_faults, for memory also saaz_faults. SEED repeats the draws of memory.
set -euo pipefail
readonly build=$1 root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
shift
(($#)) || set -- overload fair greedy swap poison restart:100 memory:200
work=$(mktemp -d)
readonly work
server=0 status=0 port=0
finish() {
  ((server == 0)) || kill -9 "$server" 2>/dev/null
  rm -rf "$work"
}
trap finish EXIT
broken() { echo "FAILED  $*"; status=1; }

# start BINARY FLAG...: a server in the background, and its port; false when it ended before it was ready
start() {
  local line=''
  rm -f "$work/ready"
  mkfifo "$work/ready"
  "$1" --json serve --model "$root/data/try/model" --port 0 "${@:2}" >"$work/ready" 2>"$work/log" &
  server=$!
  read -r line <"$work/ready" || true
  port=$(sed -nE 's/.*"address": "[^"]*:([0-9]+)".*/\1/p' <<<"$line")
  [[ -n $port ]]
}
stop() {
  kill -TERM "$server" 2>/dev/null || true
  wait "$server" || broken "the server ended with status $?: $(tail -n2 "$work/log")"
  server=0
}
tried() { "$build/tests/serve_faults" "$port" "$server" "$@" || broken "$1"; }

# Two adapters, a and b, that answer differently.
adapters() {
  local name
  [[ ! -d $work/adapters ]] || return 0
  for name in a b; do
    "$build/saaz" --quiet train "$root/data/try/recipe.yaml" --set model.base="$root/data/try/model" \
      --set data.train="$root/data/try/train.jsonl" --set data.validation.file="$root/data/try/valid.jsonl" \
      --set train.max_steps=4 --set train.learning_rate=0.02 --set train.seed="$([[ $name == a ]] && echo 1 || echo 2)" \
      --set output.dir="$work/run-$name" >/dev/null
    mkdir -p "$work/adapters/$name"
    cp "$work/run-$name"/adapter_{config.json,model.safetensors} "$work/adapters/$name"
  done
}

restart() {
  local i
  for ((i = 0; i < $1; ++i)); do
    START=$(date +%s%N)
    export START
    start "$build/saaz" --context 256 || broken 'no server'
    "$build/tests/serve_faults" "$port" "$server" first "$work/answer" >>"$work/restarts" || broken "restart $i"
    kill -9 "$server"
    wait "$server" 2>/dev/null || true
    server=0
  done
  unset START
  sort -n "$work/restarts" | awk -v n="$1" '{t[NR] = $1} END {printf "killed and started %d times: the first whole answer after %.3f s (median), %.3f s (worst)\n", n, t[int((NR + 1) / 2)], t[NR]}'
}

# An allocation fails while requests are answered: each of them gets a whole reply or none, the server goes on and
# answers as before, or ends with code 4 or 5 and one line.
memory() {
  local n=$1 i k at total ready code spoilt n_went_on=0 n_ended=0 n_before=0
  RANDOM=${SEED:-1}
  export SAAZ_FAULT=malloc:0:ENOMEM SAAZ_FAULT_LOG=$work/places
  start "$build/tests/saaz_faults" --context 256 && stop || broken 'no server'
  ready=$(sed -n 's/^total //p' "$work/places")
  rm "$work/places"
  start "$build/tests/saaz_faults" --context 256 || broken 'no server'
  "$build/tests/serve_faults" "$port" "$server" first "$work/answer" >/dev/null || broken 'no first answer'
  stop
  total=$(sed -n 's/^total //p' "$work/places")
  unset SAAZ_FAULT_LOG
  for ((i = 0; i < n; ++i)); do
    at=$((ready - 50 + (RANDOM * 32768 + RANDOM) % (total - ready + 50)))
    export SAAZ_FAULT=malloc:$at:ENOMEM
    if start "$build/tests/saaz_faults" --context 256 --drain-seconds 1; then
      unset SAAZ_FAULT
      # One allocation fails: it spoils one answer at most, or the server ends.
      spoilt=0
      for k in 1 2 3; do timeout 20 "$build/tests/serve_faults" "$port" "$server" first "$work/answer" &>"$work/first" || spoilt=$((spoilt + 1)); done
      ((spoilt > 1)) || kill -TERM "$server" 2>/dev/null || true
    else
      n_before=$((n_before + 1))
    fi
    code=0
    for ((k = 0; k < 1000; ++k)); do kill -0 "$server" 2>/dev/null || break; sleep 0.02; done
    kill -9 "$server" 2>/dev/null && broken "malloc $at: the server hangs"
    wait "$server" || code=$?
    server=0
    case $code in
      0) n_went_on=$((n_went_on + 1)) ;;
      4 | 5) n_ended=$((n_ended + 1)); [[ $(tail -n1 "$work/log") == 'error: '* ]] || broken "malloc $at: no reason: $(tail -n2 "$work/log")" ;;
      *) broken "malloc $at: status $code: $(tail -n2 "$work/log")" ;;
    esac
  done
  unset SAAZ_FAULT
  echo "$n allocations failed, of those from $((ready - 50)) to $total: $n_went_on servers went on, $n_ended ended with a reason, $n_before of them before they were ready"
}

for mode in "$@"; do
  name=${mode%%:*} n=${mode#"$name"}
  case $name in
    overload) start "$build/saaz" --context 256 --max-running 4 --max-waiting 8 && tried overload && stop ;;
    fair) start "$build/saaz" --context 2048 && tried fair && stop ;;
    greedy)
      for i in {0..8}; do echo "key-$i"; done >"$work/keys"
      chmod 600 "$work/keys"
      start "$build/saaz" --context 256 --max-running 8 --api-key-file "$work/keys" && tried greedy && stop ;;
    swap | poison)
      adapters
      start "$build/saaz" --context 256 --adapters "$work/adapters" && tried "$name" "$work/adapters" && stop ;;
    restart) restart "${n#:}" ;;
    memory) memory "${n#:}" ;;
    *) broken "unknown mode $name" ;;
  esac
done
exit $status
