#!/usr/bin/env bash
# How commands end when nobody takes what they write, and when they are told to stop.
#   cli_ends_test.sh SAAZ_BINARY SOURCE_DIR       one line a case; status 1 when any case differs
set -uo pipefail
readonly binary=$1 source=$2
. "$(dirname "${BASH_SOURCE[0]}")/cli_testing.sh"
expect 0 '' train whole

# Streams that cannot be written: a pipe without a reader, a full disk, none at all. Work goes on without its log and its
# events; a result that nobody gets is an error, or a quiet end where the reader has left.
exec 8> >(true)
wait $!
# In a shell of their own, which may die of its word on an aborted command.
to_log() { (case $1 in pipe) "${@:2}" 2>&8 ;; full) "${@:2}" 2>/dev/full ;; closed) "${@:2}" 2>&- ;; esac); }
to_data() { case $1 in pipe) "${@:2}" >&8 ;; full) "${@:2}" >/dev/full ;; closed) "${@:2}" >&- ;; esac; }
loud() { timeout 60 "$binary" "${train_flags[@]:1}" --set output.dir="$1" "${@:2}"; }
for way in pipe full closed; do
  rm -rf unheard
  ends 0 to_log $way loud unheard
  holds 'it is the run whose log is read' same_adapter unheard whole
  holds 'no file of the run holds its log' test "$(grep -lr 'tokens/s  about' unheard | wc -l)" -eq 0
  ends 3 to_log $way "$binary" train nothing.yaml
  rm -rf unheard
  ends 0 to_data $way loud unheard --json
  holds 'it is the run whose events are read' same_adapter unheard whole
  holds 'nobody hears of the events' test "$(grep -c 'standard output' err)" -eq 0
  for results in doctor 'recipe ls' --version "runs show whole" "generate --model $tiny --prompt x --max-new-tokens 2"; do
    if [[ $way == pipe ]]; then ends 141 to_data $way saaz $results; else
      expect 5 'cannot write to standard output: ' to_data $way saaz $results
    fi
    [[ $way != pipe ]] || holds 'without a word' test ! -s err
  done
done
exec 8>&-

# A stop ends what writes no file at once: an evaluation that would take minutes.
for ((i = 0; i < 100; ++i)); do cat "$samples/train.jsonl"; done >long.jsonl
stopped_evaluation() {
  local process
  "$binary" eval --model "$tiny" --data long.jsonl >out 2>err &
  process=$!
  for ((i = 0; i < 3000; ++i)); do grep -q 'weights' err && break; sleep 0.02; done
  sleep 0.2
  kill "-$1" "$process"
  for ((i = 0; i < 500; ++i)); do kill -0 "$process" 2>/dev/null || break; sleep 0.02; done
  kill -KILL "$process" 2>/dev/null
  wait "$process"
}
for end in INT:130 TERM:143 HUP:129; do
  ends "${end#*:}" stopped_evaluation "${end%:*}"
  holds 'and there is no result' test ! -s out
done
rm long.jsonl
exit $failed
