#!/usr/bin/env bash
# `saaz serve` as a person and a curl script meet it: exit codes, every endpoint, adapters by name, a drain.
#   serve_cli_test.sh SAAZ_BINARY SOURCE_DIR       one line a case; status 1 when any case differs
set -uo pipefail
readonly binary=$1 tiny=$2/data/try/model source=$2
readonly key=CANARY-key-0123456789
work=$(mktemp -d)
readonly work
cd "$work" || exit 1
context=256 server=0 failed=0 auth="Bearer $key"
unset SAAZ_API_KEY
finish() {
  ((server == 0)) || kill -9 "$server" 2>/dev/null
  rm -rf "$work"
}
trap finish EXIT

passed() { echo "ok      $*"; }
differs() { echo "FAILED  $*"; failed=1; }
# expect CODE FRAGMENT COMMAND...: an exit code, and the last line of stderr
expect() {
  local code=$1 fragment=$2 found
  shift 2
  timeout 60 "$@" >out 2>err </dev/null
  found=$?
  if ((found == code)) && [[ $(tail -n1 err) == 'error: '*"$fragment"* ]]; then passed "$code  '$fragment'"; else
    differs "$*: expected $code '$fragment', found $found: $(tail -c 300 err)"; fi
}
# starts a server in the background and waits for its address
start() {
  rm -f ready log
  "$binary" --json serve --model "$tiny" --port 0 --context "$context" "$@" >ready 2>log &
  server=$!
  for ((i = 0; i < 1500; ++i)); do [[ -s ready ]] && break; kill -0 "$server" 2>/dev/null || break; sleep 0.02; done
  address=$(sed -nE 's/.*"address": "([^"]*)".*/\1/p' ready)
  [[ -n $address ]] || { differs "no server: $(tail -c 400 log)"; exit 1; }
}
# stops it and checks its exit code
stop() {
  local code=$1 found
  kill -TERM "$server"
  wait "$server"
  found=$?
  server=0
  if ((found == code)); then passed "$code after SIGTERM"; else differs "after SIGTERM: expected $code, found $found: $(tail -n3 log)"; fi
}
# answers STATUS FRAGMENT CURL_ARGUMENT...: the status of one request, and a part of head or body
answers() {
  local status=$1 fragment=$2 found
  shift 2
  found=$(curl -s -S -i -m 20 -H "Authorization: $auth" "$@" 2>&1)
  if [[ $found == HTTP/1.1\ $status* && $found == *"$fragment"* ]]; then passed "$status  '$fragment'"; else
    differs "$*: expected $status '$fragment', found: $(head -c 700 <<<"$found")"; fi
}
json() { echo "-HContent-Type: application/json"; }
post() { answers "$1" "$2" "$(json)" -d "$4" "$address$3"; }

# What it refuses to start with.
expect 2 'no API key is set' "$binary" serve --model "$tiny" --host 0.0.0.0 --port 0
expect 2 'is no IP address' "$binary" serve --model "$tiny" --host nowhere.example --port 0
expect 2 'is no origin' "$binary" serve --model "$tiny" --port 0 --allow-origin evil
expect 3 'missing' "$binary" serve --model missing --port 0
printf '' >empty
expect 2 'holds no key' "$binary" serve --model "$tiny" --port 0 --api-key-file empty
expect 4 "raise 'ulimit -n'" bash -c "ulimit -n 36; '$binary' serve --model '$tiny' --port 0"

# An adapter to serve.
"$binary" --quiet train "$source/data/try/recipe.yaml" --set model.base="$tiny" --set data.train="$source/data/try/train.jsonl" \
  --set data.validation.file="$source/data/try/valid.jsonl" --set train.max_steps=2 --set output.dir="$work/run" >/dev/null 2>err ||
  differs "no adapter: $(tail -n1 err)"
mkdir -p adapters/fa
cp run/adapter_config.json run/adapter_model.safetensors adapters/fa
printf '# keys\n%s\nsecond\n' "$key" >keys
chmod 600 keys
expect 3 'adapter' "$binary" serve --model "$tiny" --port 0 --adapter "none=$work/nothing"
expect 2 'has the name of the model' "$binary" serve --model "$tiny" --port 0 --adapter "model=$work/run"

start --api-key-file keys --adapter first="$work/run" --adapters adapters
expect 2 'is in use' "$binary" serve --model "$tiny" --port "${address##*:}"
readonly hi='"messages":[{"role":"user","content":"سلام"}]'
auth='' answers 200 '"status": "ok"' "$address/health"
auth='' answers 401 'invalid_api_key' "$address/v1/models"
auth='Bearer wrong' answers 401 'invalid_api_key' "$address/v1/models"
answers 200 'charset=utf-8' "$address/v1/models"
answers 200 '"id": "first"' "$address/v1/models"
answers 200 '"parent": "model"' "$address/v1/models/fa"
answers 404 'model_not_found' "$address/v1/models/nobody"
post 200 '"object": "chat.completion"' /v1/chat/completions "{$hi,\"max_tokens\":4}"
post 200 '"model": "fa"' /v1/chat/completions "{\"model\":\"fa\",$hi,\"max_tokens\":4}"
post 200 '"finish_reason": "length"' /v1/completions '{"prompt":"سلام","max_tokens":2,"ignore_eos":true,"logprobs":2}'
post 200 '"index": 3' /v1/completions '{"prompt":["a","b"],"n":2,"max_tokens":1}'
post 200 'data: [DONE]' /v1/chat/completions "{$hi,\"max_tokens\":4,\"stream\":true,\"stream_options\":{\"include_usage\":true}}"
post 404 'model_not_found' /v1/chat/completions "{\"model\":\"nobody\",$hi}"
post 400 '"param": "n"' /v1/chat/completions "{$hi,\"n\":0}"
post 400 'context_length_exceeded' /v1/completions "{\"prompt\":\"$(printf 'سلام %.0s' {1..400})\"}"
post 400 'embeddings are not served' /v1/embeddings '{"input":"a"}'
post 200 '"count": ' /tokenize '{"prompt":"سلام"}'
post 200 '"prompt": "' /detokenize '{"tokens":[5,6]}'
answers 200 'saaz_completion_tokens_total' "$address/metrics"
answers 200 '"openapi": "3.1.0"' "$address/openapi.json"
answers 403 'Host' "$address/health" -H 'Host: evil.example'
answers 403 'origins' "$address/v1/chat/completions" -H 'Origin: https://evil.example' "$(json)" -d "{$hi}"
answers 415 'application/json' "$address/v1/chat/completions" -d "{$hi}"

# Adapters that come and go; only from the folder that was named.
cp -r adapters/fa adapters/later
mkdir adapters/broken
cp run/adapter_config.json adapters/broken
ln -s "$work/run" adapters/link
post 200 '"loaded": true' /v1/load_lora_adapter '{"lora_name":"later","lora_path":"later"}'
post 400 'served already' /v1/load_lora_adapter '{"lora_name":"later","lora_path":"later"}'
post 200 '"loaded": true' /v1/load_lora_adapter '{"lora_name":"later","lora_path":"later","load_inplace":true}'
post 200 '"model": "later"' /v1/chat/completions "{\"model\":\"later\",$hi,\"max_tokens\":2}"
post 200 '"deleted": true' /v1/unload_lora_adapter '{"lora_name":"later"}'
post 404 'model_not_found' /v1/unload_lora_adapter '{"lora_name":"later"}'
post 404 'model_not_found' /v1/chat/completions "{\"model\":\"later\",$hi}"
post 400 'adapter_model.safetensors' /v1/load_lora_adapter '{"lora_name":"broken","lora_path":"broken"}'
for path in ../run "$work/run" link .. . nothing fa/adapter_config.json; do
  post 404 'no folder in' /v1/load_lora_adapter "{\"lora_name\":\"x\",\"lora_path\":\"$path\"}"
done

# A drain: what runs ends well, what is new is refused, exit 0.
curl -s -N -H "Authorization: Bearer $key" "$(json)" -d "{$hi,\"stream\":true,\"ignore_eos\":true,\"max_tokens\":200}" \
  "$address/v1/chat/completions" >stream &
readonly client=$!
for ((i = 0; i < 500; ++i)); do grep -q content stream 2>/dev/null && break; sleep 0.01; done
stop 0
wait "$client"
if [[ $(tail -n2 stream) == *'[DONE]'* || $(cat stream) == *'shutting_down'* ]]; then passed "the stream ended well"; else
  differs "the stream broke off: $(tail -c 200 stream)"; fi

# More than the line holds: with one that runs and one that waits, others are told when to come again; those two are
# answered. Tried again where the first had ended before the last of the others came.
context=2048 start --max-running 1 --max-waiting 1 --drain-seconds 0
gauge() { curl -s "$address/metrics" | sed -n "s/^saaz_$1 //p"; }
until_gauge() { for ((i = 0; i < 1000; ++i)); do [[ $(gauge "$1") == "$2" ]] && return; sleep 0.01; done; }
ask() { curl -s -i -m 60 "$(json)" -d "{$hi,\"ignore_eos\":true$1}" "${@:2}"; }
readonly chat=$address/v1/chat/completions
for ((try = 0; try < 20; ++try)); do
  ask ',"stream":true,"max_tokens":1900' -N "$chat" >first &
  clients=($!)
  until_gauge sequences_running 1
  ask ',"max_tokens":100' "$chat" >second &
  clients+=($!)
  until_gauge requests_waiting 1
  ask ',"max_tokens":100' "$chat" "$chat" "$chat" "$chat" >others
  grep -q 'DONE' first || break
  wait "${clients[@]}"
done
wait "${clients[@]}"
n_busy=$(grep -c 'HTTP/1.1 429' others) n_told=$(grep -c '^Retry-After: 1' others)
if ((n_busy == 4 && n_told == 4)) && grep -q 'DONE' first && grep -q '"finish_reason": "length"' second; then
  passed "429 for those whom the line does not hold"; else
  differs "one runs, one waits, of four more $n_busy got 429, $n_told when to come again: $(head -c 300 others second)"; fi
rm stream
curl -s -N "$(json)" -d "{$hi,\"stream\":true,\"ignore_eos\":true}" "$address/v1/chat/completions" >stream &
readonly cut=$!
for ((i = 0; i < 500; ++i)); do grep -q content stream 2>/dev/null && break; sleep 0.01; done
stop 0
wait "$cut"
if grep -q 'shutting_down\|DONE' stream; then passed "a stream that is cut says why"; else
  differs "the stream broke off: $(tail -c 200 stream)"; fi

start
curl -s "$(json)" -d "{$hi,\"ignore_eos\":true}" "$address/v1/chat/completions" >/dev/null
if grep -q "$key" out err log ready; then differs "the key is in the output"; else passed "the key is nowhere in the output"; fi
kill -INT "$server"
wait "$server"
readonly code=$?
server=0
if ((code == 0)); then passed "0 after SIGINT"; else differs "after SIGINT: $code"; fi
exit $failed
