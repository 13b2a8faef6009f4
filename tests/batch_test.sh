#!/usr/bin/env bash
# `saaz generate --batch` as a person runs it: order, errors of lines, kills and restarts, exit codes.
#   tests/batch_test.sh SAAZ SOURCE
set -euo pipefail
binary=$1 tiny=$2/data/try/model
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
failed=0
ok() { echo "ok      $1"; }
bad() { echo "FAILED  $1"; failed=1; }
holds() { local what=$1; shift; if "$@"; then ok "$what"; else bad "$what"; fi; }
batch() { "$binary" generate --model "$tiny" --batch "$@" 2>err; }
status() { local code=0; batch "$@" || code=$?; echo $code; }

chat() { # ID TEXT MORE
  printf '{"custom_id": "%s", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "m", "messages": [{"role": "user", "content": "%s"}], "max_tokens": 12%s}}\n' "$1" "$2" "${3:-}"
}
for i in $(seq 1 60); do chat "r$i" "نام تو چیست؟ $i" ", \"temperature\": 1"; done >good.jsonl
{
  chat a سلام ', "n": 2, "logprobs": true'
  echo '{"custom_id": "b", "method": "GET", "url": "/v1/chat/completions", "body": {}}'
  echo '{"custom_id": "c", "method": "POST", "url": "/v1/embeddings", "body": {}}'
  echo 'not json'
  echo ''
  chat d سلام ', "temperature": -1'
  chat a again
  echo '{"custom_id": "e", "method": "POST", "url": "/v1/completions", "body": {"model": "m", "prompt": ["یک", "دو"], "max_tokens": 3, "n": 2}}'
  echo '{"method": "POST", "url": "/v1/completions", "body": {"model": "m", "prompt": "x"}}'
  chat f سلام ', "stream": true'
  printf '{"custom_id": "g", "method": "POST", "url": "/v1/completions", "body": {"model": "m", "prompt": "%s"}}\n' "$(printf 'و %.0s' $(seq 3000))"
} >mixed.jsonl
ids() { sed -nE 's/.*"custom_id": ("[^"]*"|null).*/\1/p' "$1" | tr '\n' ' '; }
# What must not differ between runs: all but the time of writing.
same() { cmp -s <(sed -E 's/"created": [0-9]+//' "$1") <(sed -E 's/"created": [0-9]+//' "$2"); }

holds 'a good batch exits 0' test "$(status good.jsonl -o good.out)" = 0
holds 'a line for each request, in order' test "$(ids good.out)" = "$(for i in $(seq 1 60); do printf '"r%s" ' "$i"; done)"
holds 'all are answers' test "$(grep -c '"status_code": 200' good.out)" = 60
holds 'no progress where there is no terminal' test "$(grep -c $'\r' err)" = 0
cp good.out first.out
holds 'again: nothing is left to do' test "$(status good.jsonl -o good.out)" = 0
holds 'again: nothing changed' cmp -s first.out good.out

head -c $(($(wc -c <first.out) / 2)) first.out >cut.out
holds 'a cut file is gone on with' test "$(status good.jsonl -o cut.out)" = 0
holds 'and ends as an uncut one' same first.out cut.out
holds 'it says so' grep -q 'going on after' err

for parallel in 1 3 64; do
  rm -f p.out
  batch good.jsonl -o p.out --parallel $parallel
  holds "the same with --parallel $parallel" same first.out p.out
done

kills=0 longest=300
rm -f killed.out
n_answers() { if [[ -f killed.out ]]; then wc -l <killed.out; else echo 0; fi; }
while (($(n_answers) < 60)) && ((kills < 200)); do
  before=$(n_answers)
  "$binary" generate --model "$tiny" --batch good.jsonl -o killed.out --parallel 2 2>/dev/null &
  pid=$!
  # The first is killed at its first answer, the others anywhere; later where nothing got done, as on a busy machine.
  if ((kills == 0)); then until [[ -s killed.out ]] || ! kill -0 $pid 2>/dev/null; do sleep 0.005; done; else
    pause=$((RANDOM % longest + 30)); sleep "$(printf '%d.%03d' $((pause / 1000)) $((pause % 1000)))"; fi
  code=0
  kill -9 $pid 2>/dev/null || true
  wait $pid 2>/dev/null || code=$?
  ((code != 137)) || kills=$((kills + 1))
  if ((kills == 0)); then rm -f killed.out; fi  # it was done before the first kill
  if ((code == 137 && $(n_answers) == before && longest < 10000)); then longest=$((2 * longest)); fi
done
holds "after $kills kills every answer is there" same first.out killed.out
holds 'some runs were killed' test "$kills" -gt 0

rm -f term.out
"$binary" generate --model "$tiny" --batch <(cat good.jsonl) -o term.out 2>err && bad 'a pipe is no batch file' || ok 'a pipe is no batch file'
for i in $(seq 1 400); do chat "s$i" "سلام $i"; done >long.jsonl
"$binary" generate --model "$tiny" --batch long.jsonl -o term.out --parallel 1 2>err.first & pid=$!
until [[ -s term.out ]] || ! kill -0 $pid; do sleep 0.02; done
holds 'a second writer of the same output gives 7' test "$(status long.jsonl -o term.out)" = 7
holds 'and one line' test "$(grep '^error: ' err)" = 'error: term.out is being written by another process: wait for it or choose another file'
holds 'while the first goes on' kill -0 $pid
kill -TERM $pid
code=0; wait $pid || code=$?
holds 'SIGTERM ends it with 143' test $code = 143
holds 'what is written are whole lines' test "$(tail -c 1 term.out | od -An -c | tr -d ' ')" = '\n'
holds 'and it goes on' test "$(status long.jsonl -o term.out)" = 0

holds 'bad lines give 3' test "$(status mixed.jsonl -o mixed.out --context 512)" = 3
holds 'every line has its answer' test "$(ids mixed.out)" = '"a" "b" "c" null "d" "a" "e" null "f" "g" '
line() { sed -n "$1p" mixed.out; }
holds 'two choices with log probabilities' grep -q '"index": 1.*"logprobs": {' <(line 1)
holds 'method' grep -q '"status_code": 400.*POST' <(line 2)
holds 'url' grep -q '"status_code": 400.*/v1/completions' <(line 3)
holds 'no JSON' grep -q '"response": null, "error": {"code": "invalid_json_line"' <(line 4)
holds 'a range' grep -q '"status_code": 400.*temperature' <(line 5)
holds 'a custom_id twice' grep -q duplicate_custom_id <(line 6)
holds 'two prompts of two choices' grep -q '"index": 3' <(line 7)
holds 'no custom_id' grep -q '"custom_id": null.*custom_id: expected a text' <(line 8)
holds 'no streams' grep -q 'does not stream' <(line 9)
holds 'too long' grep -q '"status_code": 400.*context_length_exceeded' <(line 10)
cp mixed.out before.out
holds 'again: the errors stand' test "$(status mixed.jsonl -o mixed.out --context 512)" = 0
holds 'and nothing is added' cmp -s before.out mixed.out

holds 'answers of another batch give 8' test "$(status good.jsonl -o mixed.out)" = 8
holds 'and stay' cmp -s before.out mixed.out
holds 'no output gives 2' test "$(status good.jsonl)" = 2
holds 'input as output gives 2' test "$(status good.jsonl -o good.jsonl)" = 2
holds 'no input gives 3' test "$(status nothing.jsonl -o x.out)" = 3
holds 'prompt and batch give 2' test "$(status good.jsonl -o x.out --prompt x)" = 2
exit $failed
