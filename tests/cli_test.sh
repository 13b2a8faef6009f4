#!/usr/bin/env bash
# The program as a person runs it: exit code and a fragment of the one-line message, for faults of every kind.
#   cli_test.sh SAAZ_BINARY SOURCE_DIR        one line a case; status 1 when any case differs
set -uo pipefail
readonly saaz=$1 source=$2
work=$(mktemp -d)
readonly work tiny=$source/data/try/model
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1
failed=0

# expect CODE FRAGMENT COMMAND...: runs the command; stderr must be one line that holds the fragment when CODE is not 0.
expect() {
  local code=$1 fragment=$2 found
  shift 2
  "$@" >out 2>err </dev/null
  found=$?
  if ((found == code)) && { [[ -z $fragment ]] || grep -qF -- "$fragment" out err; } && { ((code == 0)) || (($(wc -l <err) == 1)); }; then
    echo "ok      $code  ${*##*/}" | cut -c1-150
  else
    echo "FAILED  $* : expected $code with '$fragment', found $found: $(head -c 400 err)"
    failed=1
  fi
}

# expect_status CODE FOUND WHAT: for commands that ran by other means, or that report on stdout.
expect_status() {
  if (($1 == $2)); then echo "ok      $1  $3"; else echo "FAILED  $3 : expected $1, found $2"; failed=1; fi
}

recipe=$source/data/try/recipe.yaml
train() {
  local run=$1
  shift
  "$saaz" --quiet train "$recipe" --set model.base="$tiny" --set data.train="$source/data/try/train.jsonl" \
    --set data.validation.file="$source/data/try/valid.jsonl" --set output.dir="$run" --set train.max_steps=8 --set output.save_steps=2 \
    --set eval.every_steps=0 "$@"
}
generate() { "$saaz" --quiet generate --model "$1" --prompt سلام --max-new-tokens 2; }
with_row() { printf '%s\n' "$1" >bad.jsonl; "$saaz" --quiet eval --model "$tiny" --data bad.jsonl; }
with_recipe() { printf '%b' "$1" >bad.yaml; "$saaz" --quiet train bad.yaml; }
copy_model() { rm -rf "$1"; cp -r "$tiny" "$1"; }

# Usage.
expect 2 'foo' "$saaz" foo
expect 2 '--model' "$saaz" generate --prompt x
expect 2 '' "$saaz" generate --model "$tiny" --prompt x --temperature -1
expect 2 '' "$saaz" merge --base "$tiny" --adapter x --out y --dtype f8

# Recipes: the place and the nearest name.
expect 2 'bad.yaml:2:1' with_recipe 'recipe: 1\nmodle: { base: x }\n'
expect 2 'learning_rate' with_recipe 'recipe: 1\ntrain: { learning_rat: 1 }\n'
expect 2 'bad.yaml' with_recipe 'recipe: 1\nrecipe: 1\n'
expect 2 'bad.yaml' with_recipe 'recipe: &a 1\n'
expect 2 'not built' with_recipe 'recipe: 1\nmodel: { base: x }\ndata: { train: y, normalize: chat }\noutput: { dir: z }\n'
expect 2 'bad.yaml' with_recipe 'recipe: [[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[\n'
expect 3 'nothing.yaml' "$saaz" train nothing.yaml
expect 2 'lora.r' train run --set lora.r=0

# Models.
expect 3 'does not exist' generate nowhere
expect 3 'config.json' generate "$source/docs"
copy_model m && truncate -s 1000 m/model.safetensors && expect 3 'm/model.safetensors' generate m
copy_model m && printf 'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n' >m/model.safetensors && expect 3 'LFS' generate m
copy_model m && printf '<!DOCTYPE html><html></html>' >m/model.safetensors && expect 3 'm/model.safetensors' generate m
copy_model m && printf 'PK\003\004' >m/model.safetensors && expect 3 'm/model.safetensors' generate m
copy_model m && rm m/model.safetensors && mkfifo m/model.safetensors && expect 3 'm' generate m
copy_model m && echo '{' >m/config.json && expect 3 'm/config.json' generate m
copy_model m && sed -i 's/"num_attention_heads": 4/"num_attention_heads": 0/' m/config.json && expect 3 'num_attention_heads' generate m
copy_model m && sed -i 's/"hidden_size": 128/"hidden_size": 256/' m/config.json && expect 3 'shape' generate m
copy_model m && echo '{"model":{"type":"WordPiece"}}' >m/tokenizer.json && expect 3 'tokenizer.json' generate m
printf 'GGUF\003' >short.gguf && expect 3 'short.gguf' generate short.gguf
printf 'nothing of the kind' >wrong.gguf && expect 3 'wrong.gguf' generate wrong.gguf

# Data.
expect 3 'row 1' with_row '{"messages": [{"role": "user", "content": "x"}'
expect 3 'row 1' with_row '{"messages": []}'
expect 3 'row 1' with_row '{"messages": [{"role": "assistant", "content": "x"}]}'
expect 3 'row 1' with_row '{"messages": [{"role": "user", "content": 7}, {"role": "assistant", "content": "x"}]}'
expect 3 'row 1' with_row $'{"messages": [{"role": "user", "content": "\xff"}, {"role": "assistant", "content": "x"}]}'
expect 3 'bad.jsonl' with_row ''
expect 3 'bad.jsonl' with_row '{"unknown": 1}'
expect 3 '' "$saaz" --quiet eval --model "$tiny" --data /dev/null

# A run: finished, in use, changed, damaged.
expect 0 '' train whole
expect 7 'already holds a run' train whole
expect 8 'lora.lora_alpha' train whole --set lora.lora_alpha=3 --resume
printf 'x' | dd of=whole/checkpoint-8/optimizer.safetensors bs=1 seek=900 conv=notrunc 2>/dev/null
expect 8 'damaged' train whole --resume=whole/checkpoint-8
touch file && expect 2 'file' train file
expect 6 'not both finite' train diverged --set train.learning_rate=1 --set train.warmup_steps=1 --set lora.lora_alpha=4096 --set lora.r=1 \
  --set train.max_grad_norm=0 --set quant.scheme=none

# Killed or stopped, then resumed: the same adapter.
stopped() {
  local signal=$1 code=$2 run=stopped-$1 process
  train "$run" >/dev/null 2>&1 &
  process=$!
  for ((i = 0; i < 600; ++i)); do grep -q '"step": 3,' "$run/events.jsonl" 2>/dev/null && break; sleep 0.05; done
  kill "-$signal" "$(pgrep -f "output.dir=$run" | head -n1)" 2>/dev/null
  wait "$process"
  expect_status "$code" $? "stopped by SIG$signal"
  expect 0 '' train "$run" --resume
  expect 0 '' cmp "$run/adapter_model.safetensors" whole/adapter_model.safetensors
}
stopped INT 130
stopped TERM 143
stopped KILL 137

# Merging.
expect 0 'proven' "$saaz" --quiet merge --base "$tiny" --adapter whole --out merged
expect 0 'proven' "$saaz" --quiet verify merged
expect 7 'merged' "$saaz" --quiet merge --base "$tiny" --adapter whole --out merged
expect 3 'nowhere' "$saaz" --quiet merge --base "$tiny" --adapter nowhere --out other
cp -r whole narrow && sed -i 's/"r": 8/"r": 4/' narrow/adapter_config.json && expect 3 'shape' "$saaz" --quiet merge --base "$tiny" --adapter narrow --out other
expect 0 '' train still --set train.max_steps=1
"$saaz" --quiet merge --base "$tiny" --adapter still --out other >out 2>err
expect_status 8 $? 'merge of an adapter that changes nothing'
[[ ! -e other ]]
expect_status 0 $? 'nothing is left of a failed merge'
printf '\x55' | dd of=merged/model.safetensors bs=1 seek=4000000 conv=notrunc 2>/dev/null
"$saaz" --quiet verify merged >out 2>err
expect_status 8 $? 'verify of a folder with one byte changed'

exit $failed
