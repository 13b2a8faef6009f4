#!/usr/bin/env bash
# The program as a person runs it: exit code and a fragment of the one-line message, for faults of every kind; that a
# stopped run goes on to the same bytes; that stdout holds data only.
#   cli_test.sh SAAZ_BINARY SOURCE_DIR MAKE_GGUF3N        one line a case; status 1 when any case differs
# As root a full disk is tried as well, on a small tmpfs.
set -uo pipefail
readonly binary=$1 source=$2 make_gguf3n=$3
. "$(dirname "${BASH_SOURCE[0]}")/cli_testing.sh"

# damaged FRAGMENT DAMAGE: a copy m of the model, changed by the shell command DAMAGE, is a bad input.
damaged() {
  rm -rf m && cp -r "$tiny" m && eval "$2"
  label="model: $2" expect 3 "$1" generate m
}
# damaged_adapter FRAGMENT DAMAGE: the same for a copy a of the adapter whole.
damaged_adapter() {
  rm -rf a && cp -r whole a && eval "$2"
  label="adapter: $2" expect 3 "$1" generate "$tiny" --adapter a
}
# bad_row FRAGMENT TEXT: a data file that holds TEXT (%b) is a bad input.
bad_row() {
  printf '%b' "$2" >bad.jsonl
  label="data: $2" expect 3 "$1" saaz eval --model "$tiny" --data bad.jsonl
}
# bad_recipe FRAGMENT TEXT: a recipe TEXT (%b) is a usage error.
bad_recipe() {
  printf '%b' "$2" >bad.yaml
  label="recipe: $2" expect 2 "$1" saaz train bad.yaml
}

# Usage.
expect 2 "unknown argument 'foo'" saaz foo
expect 2 "unknown argument '--bogus'" saaz --bogus
expect 2 'subcommand is required' saaz
expect 2 'recipe is required' saaz train
expect 2 '--model is required' saaz generate --prompt x
expect 2 '--out is required' saaz merge --base x --adapter y
expect 2 '--threads' saaz --threads x doctor
expect 2 '--temperature: Value -1' saaz generate --model "$tiny" --prompt x --temperature -1
expect 2 '--temperature: Value nan' saaz generate --model "$tiny" --prompt x --temperature nan
expect 2 '--top-p: Value 2' saaz generate --model "$tiny" --prompt x --top-p 2
expect 2 '--seed: Value -1' saaz generate --model "$tiny" --prompt x --seed -1
expect 2 '--dtype' saaz merge --base "$tiny" --adapter x --out y --dtype f8
expect 2 'unit not recognized' saaz merge --base "$tiny" --adapter x --out y --max-shard-size 5QB
expect 2 "--max-shard-size: Value -1" saaz merge --base "$tiny" --adapter x --out y --max-shard-size -1
expect 2 "files is required; see 'saaz data inspect --help'" saaz data inspect
expect 2 "see 'saaz recipe show --help'" saaz recipe show
expect 2 "no recipe 'nothing'" saaz recipe show nothing

# Recipes: the place and the nearest name.
bad_recipe "bad.yaml:2:1: unknown key 'modle'" 'recipe: 1\nmodle: { base: x }\n'
bad_recipe "did you mean 'train.learning_rate'?" 'recipe: 1\ntrain: { learning_rat: 1 }\n'
bad_recipe 'bad.yaml:2:1' 'recipe: 1\nrecipe: 1\n'
bad_recipe 'bad.yaml:1:9' 'recipe: &a 1\n'
bad_recipe 'bad.yaml:2:8' 'recipe: 1\nmodel: *a\n'
bad_recipe 'bad.yaml:2:1: invalid YAML: illegal tab' 'recipe: 1\n\tmodel: x\n'
bad_recipe 'bad.yaml' 'recipe: [[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[\n'
bad_recipe 'not built yet' 'recipe: 1\nmodel: { base: x, text_only: false }\ndata: { train: y }\noutput: { dir: z }\n'
expect 3 "'saaz fetch google/gemma-3n-E2B-it' gets it" train run --set model.base=google/gemma-3n-E2B-it
expect 2 'found "many"' train run --set lora.r=many
expect 2 'lora.r' train run --set lora.r=0
expect 2 'lora.use_dora: true is not built yet' train run --set lora.use_dora=true
expect 3 'nothing.yaml' saaz train nothing.yaml
expect 3 'not a regular file' saaz train /dev/null

# Models.
expect 3 'does not exist' generate nowhere
expect 3 "no model: it holds no config.json; give a folder with config.json and safetensors, or a .gguf file" generate "$source/docs"
expect 3 'is a file and no model: give a folder' generate "$source/README.md"
expect 3 'is no tokenizer: give' saaz data inspect "$source/data/try/train.jsonl" --model "$source/README.md"
damaged 'm/model.safetensors' 'truncate -s 1000 m/model.safetensors'
damaged 'm/model.safetensors' 'truncate -s -1 m/model.safetensors'
damaged 'too few' ': >m/model.safetensors'
damaged 'over the limit' 'printf "\377\377\377\377\377\377\377\177" | dd of=m/model.safetensors conv=notrunc 2>/dev/null'
damaged 'LFS' 'printf "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n" >m/model.safetensors'
damaged 'HTML' 'echo "<!DOCTYPE html><html></html>" >m/model.safetensors'
damaged 'm/model.safetensors' 'printf "PK\003\004 a torch zip" >m/model.safetensors'
damaged 'm/model.safetensors' 'printf "\200\002}q\000. a pickle" >m/model.safetensors'
damaged 'pickle' 'mv m/model.safetensors m/pytorch_model.bin'
damaged 'not a regular file' 'rm m/model.safetensors; mkfifo m/model.safetensors'
damaged 'm/config.json' 'echo "{" >m/config.json'
damaged 'm/config.json' 'head -c 4000 /dev/zero >m/config.json'
damaged 'num_attention_heads' 'sed -i "s/\"num_attention_heads\": 4/\"num_attention_heads\": 0/" m/config.json'
damaged 'shape' 'sed -i "s/\"hidden_size\": 128/\"hidden_size\": 256/" m/config.json'
damaged 'no tokenizer.json' 'rm m/tokenizer.json'
damaged 'm/tokenizer.json' 'truncate -s 1000 m/tokenizer.json'
damaged 'm/tokenizer.json' 'echo "{\"model\":{\"type\":\"WordPiece\"}}" >m/tokenizer.json'
printf 'GGUF\003' >short.gguf && expect 3 'short.gguf' generate short.gguf
printf 'GGUF\003\0\0\0\377\377\377\377\377\377\377\177\001\0\0\0\0\0\0\0' >claims.gguf && expect 3 'claims.gguf: byte' generate claims.gguf
printf 'nothing of the kind' >wrong.gguf && expect 3 'wrong.gguf' generate wrong.gguf
expect 3 'nothing.txt' saaz generate --model "$tiny" --prompt @nothing.txt

# A tokenizer with tokens that the model has no rows for: whoever opens both says so, of a folder and of a GGUF file.
# wrong_vocabulary FILE COMMAND...
wrong_vocabulary() { expect 3 "$1: token 2048 ('zq0') has no row in the model's table: expected ids below 2048, found 2448" "${@:2}"; }
rm -rf m && cp -r "$tiny" m
sed -i "s/\"vocab\": {/&$(for i in {0..399}; do printf '"zq%d": %d, ' $i $((2048 + i)); done)/" m/tokenizer.json
holds 'a GGUF file of it' "$make_gguf3n" m m.gguf
printf '{"text": "zq0 zq399"}\n' >past.jsonl
for model in m m.gguf; do
  file=m.gguf && [[ $model == m ]] && file=m/tokenizer.json
  wrong_vocabulary $file generate $model
  wrong_vocabulary $file saaz generate --model $model --batch past.jsonl -o answers.jsonl
  wrong_vocabulary $file saaz chat --model $model
  wrong_vocabulary $file saaz serve --model $model --port 0
  wrong_vocabulary $file saaz eval --model $model --data past.jsonl
  wrong_vocabulary $file saaz data preview past.jsonl --model $model --loss --html page.html
  wrong_vocabulary $file saaz export gguf --model $model --out past.gguf
  wrong_vocabulary $file saaz quantize --model $model --to nf4 --out past
  wrong_vocabulary $file train trained --set model.base=$model
  wrong_vocabulary $file train trained --set model.base=$model --set eval.probes=default-fa
  wrong_vocabulary $file saaz plan "${train_flags[@]:2}" --set model.base=$model
  expect 0 '' saaz data inspect past.jsonl --model $model
done
holds 'nothing is left of them' test -z "$(compgen -G 'past*' | grep -v past.jsonl)"

# Data.
readonly asked='{"role": "user", "content": "x"}' answered='{"role": "assistant", "content": "y"}'
bad_row 'row 1 (line 1): JSON' "{\"messages\": [$asked\n"
bad_row 'row 2 (line 2)' "{\"messages\": [$asked, $answered]}\n{\"messages\": []}\n"
bad_row 'row 1' "{\"messages\": [$answered]}\n"
bad_row "role 'robot'" "{\"messages\": [{\"role\": \"robot\", \"content\": \"x\"}, $answered]}\n"
bad_row 'row 1' "{\"messages\": [{\"role\": \"user\", \"content\": 7}, $answered]}\n"
bad_row 'expected a list of messages' '{"messages": "x"}\n'
bad_row 'expected an object' '[1]\n'
bad_row 'UTF-8' "{\"messages\": [{\"role\": \"user\", \"content\": \"\\xff\"}, $answered]}\n"
bad_row 'NUL byte' '{"messages":\0}\n'
bad_row 'NUL character' "{\"messages\": [{\"role\": \"user\", \"content\": \"a\\\\u0000\"}, $answered]}\n"
bad_row 'no usable row' '\n'
bad_row 'no usable row' ''
bad_row 'row 1' '{"unknown": 1}\n'
mkfifo pipe && expect 3 'pipe is not a regular file' saaz eval --model "$tiny" --data pipe
expect 3 'not a regular file' saaz eval --model "$tiny" --data /dev/null
printf '[1]\n' >bad.jsonl && expect 3 'row 1 (line 1)' saaz data validate bad.jsonl

# A run: finished, in use, changed, damaged, diverged, in an impossible place.
expect 0 '' train whole
expect 7 'already holds' train whole
expect 3 'no checkpoint to resume' train empty --resume
expect 8 'lora.lora_alpha' train whole --set lora.lora_alpha=3 --resume
poke whole/checkpoint-12/optimizer.safetensors 900
expect 8 'damaged' train whole --resume=whole/checkpoint-12
rm whole/checkpoint-10/trainer_state.json && expect 8 'checkpoint-10' train whole --resume=whole/checkpoint-10
touch file && expect 2 'is not a directory' train file
expect 5 'cannot create directory' train /proc/x
expect 6 'not both finite' train diverged --set train.learning_rate=1 --set train.warmup_steps=1 --set lora.lora_alpha=4096 \
  --set lora.r=1 --set train.max_grad_norm=0 --set quant.scheme=none

# Where there is no GPU to be seen: one line says so, and the CPU does it.
without_gpu() { CUDA_VISIBLE_DEVICES='' timeout 60 "$binary" "$@" --model "$tiny" --prompt سلام --max-new-tokens 2; }
expect 0 '' without_gpu generate
holds 'without a GPU one line says that the CPU runs' test "$(grep -c 'no GPU .* running on the CPU' err)" -eq 1
expect 4 'this machine has no GPU' without_gpu --quiet --device cuda generate

# Plans: what fits, what does not and how it would, what never will.
expect_report 0 'this fits' saaz plan "${train_flags[@]:2}"
holds 'a plan gives the time' grep -q 'updates of .* tokens/s' out
expect_report 0 'this fits' saaz plan "${train_flags[@]:2}" --counts-only
expect_report 4 '--set train.recompute=layer' saaz plan "${train_flags[@]:2}" --set train.recompute=none \
  --set train.per_device_train_batch_size=24 --max-memory 60MiB
expect_report 4 'nor does any smaller run' saaz plan "${train_flags[@]:2}" --max-memory 1MB
expect 4 '--max-memory allows 1' train toolarge --max-memory 1MiB
holds 'a run that is refused for its memory leaves no run' absent toolarge/recipe.yaml

expect_report 0 'validation loss after 12 updates' saaz runs show whole
json_lines runs show whole

# The card of a run, written again; a merged folder's holds its proof.
expect 0 '' saaz export card whole --out card
holds 'it is the run'"'"'s card' cmp whole/README.md card/README.md

# Runs that are none: said so, and a list goes on after one.
expect 3 "expects a run folder or a trainer_state.json" saaz watch "$samples/valid.jsonl" --json
holds 'nothing of it is shown as a run' test ! -s out
expect 3 'nothing' saaz runs compare whole nothing
in_run() { (cd whole && "$@"); }
expect_report 0 'updates                              12/12' in_run saaz runs show trainer_state.json
expect_report 0 '"status": "finished"' in_run saaz watch trainer_state.json --json
mkdir -p listed && cp -r whole listed/b-whole && mkdir listed/a-broken listed/c-foreign
echo 'no JSON' >listed/a-broken/events.jsonl && echo '{}' >listed/c-foreign/trainer_state.json
expect_report 0 'a-broken                     unreadable' saaz runs ls --in listed
holds 'the list goes on after it' grep -q '^b-whole  *finished  *12/12' out
holds 'with the reason' grep -q "^c-foreign  *unreadable  *.*log_history" out
json_lines runs ls --in listed
holds 'and so for machines' test "$(grep -c '"status": "unreadable", "reason": "' out)" -eq 2
expect 3 'log_history' saaz watch listed/c-foreign --json

# What each resume finds in the data again is told once.
expect 0 '' train noted --set data.normalize=chat --set train.max_steps=2
for again in 1 2; do expect 0 '' train noted --set data.normalize=chat --set train.max_steps=2 --resume; done
holds 'a note is told once' test "$(grep -c 'data.normalize changed' noted/events.jsonl)" -eq 1

# Adapters.
damaged_adapter 'adapter_config.json' 'rm a/adapter_config.json'
damaged_adapter 'adapter_model.safetensors' 'rm a/adapter_model.safetensors'
damaged_adapter 'truncated' 'truncate -s 5000 a/adapter_model.safetensors'
damaged_adapter 'invalid JSON' 'echo "{" >a/adapter_config.json'
damaged_adapter 'shape' 'sed -i "s/\"r\": 8/\"r\": 4/" a/adapter_config.json'
damaged_adapter 'LORA' 'sed -i s/LORA/IA3/ a/adapter_config.json'
damaged_adapter 'expected [8, 128]' 'LC_ALL=C sed -i "s/\[8, 128\]/[4, 256]/" a/adapter_model.safetensors'
damaged_adapter 'another base model?' 'LC_ALL=C sed -i "s/layers\.7\./layers.9./g" a/adapter_model.safetensors'

# Stopped or killed, then resumed: the same adapter. A stop saves the step it is in; after SIGKILL an older one is left.
stopped() {
  local signal=$1 code=$2 run=stopped-$1 process found try
  for ((try = 0; try < 5; ++try)); do  # once more where the run was done before the signal came
    rm -rf "$run"
    "$binary" "${train_flags[@]}" --set output.dir="$run" >/dev/null 2>&1 &
    process=$!
    for ((i = 0; i < 1500; ++i)); do grep -q '"step": 3,' "$run/events.jsonl" 2>/dev/null && break; sleep 0.02; done
    kill "-$signal" "$process" 2>/dev/null
    wait "$process" 2>/dev/null
    found=$?
    ((found == 0)) || break
  done
  if ((found == code)); then passed "$code  SIG$signal"; else differs "SIG$signal: expected $code, found $found"; fi
  holds "SIG$signal leaves a checkpoint" compgen -G "$run/checkpoint-*/manifest.json"
  holds "SIG$signal leaves no finished adapter" absent "$run/checkpoint-12"
  expect 0 '' train "$run" --resume
  holds "SIG$signal and --resume give the bytes of a whole run" same_adapter "$run" whole
}
stopped INT 130
stopped TERM 143
stopped HUP 129
stopped KILL 137

# Validation and probes are cut short by a stop, and made up for on resume: the curves are those of a whole run.
readonly looks=(--set eval.every_steps=2 --set eval.probes=default-fa --set train.max_steps=4)
curves() { grep -E '"event": ?"(eval|probes)"' "$1/events.jsonl" | sed -E 's/"(runtime_s|samples_per_s|unix_time)": ?[^,}]+//g'; }
stopped_in_a_look() {
  local run=stopped-look process found try
  # Once more where the signal came after the round; a stop that does not cut it short never passes.
  for ((try = 0; try < 5; ++try)); do
    rm -rf "$run"
    "$binary" "${train_flags[@]}" "${looks[@]}" --set output.dir="$run" >/dev/null 2>&1 &
    process=$!
    for ((i = 0; i < 3000; ++i)); do grep -q '"step": \?2,' "$run/events.jsonl" 2>/dev/null && break; sleep 0.01; done
    kill -TERM "$process" 2>/dev/null
    wait "$process" 2>/dev/null
    found=$?
    [[ $(curves "$run" | grep -c probes) -ne 1 ]] || break
  done
  if ((found == 143)); then passed "143  SIGTERM in a round of probes"; else differs "SIGTERM in a look: expected 143, found $found"; fi
  holds 'the round was cut short' test "$(curves "$run" | grep -c probes)" -eq 1
  expect 0 '' train "$run" "${looks[@]}" --resume
  curves "$run" >resumed-curves
  expect 0 '' train whole-look "${looks[@]}"
  curves whole-look >whole-curves
  holds 'after --resume validation and probes are those of a whole run' cmp resumed-curves whole-curves
  holds 'and there are three rounds' test "$(grep -c probes whole-curves)" -eq 3
}
stopped_in_a_look

# Merging and proving.
expect_report 0 'proven' merge whole merged
expect_report 0 'proven' saaz verify merged
cp merged/README.md proven-card && expect 0 '' saaz export card whole --out merged
holds 'the card of a merged folder, written again, is the same' cmp proven-card merged/README.md
expect_report 0 'proven' saaz verify merged
expect 7 'merged exists and is not empty' merge whole merged
expect 3 'nowhere' merge nowhere other
wrong_vocabulary m/tokenizer.json saaz merge --base m --adapter whole --out other
holds 'nothing is left of a merge with another tokenizer' absent other
expect 5 'cannot create directory' merge whole /proc/m
expect 3 'merge_certificate.json' saaz verify "$tiny"
expect 3 "is no merged folder: expected one that 'saaz merge' wrote" saaz verify past.jsonl
expect 0 '' train still --set train.max_steps=1
expect_report 8 "the written weights equal the base's" merge still other
holds 'nothing is left of a merge that is not proven' absent other

# A GGUF base: trained on, merged into a complete folder, which says what file and adapter say. f32, so that rounding
# cannot turn a close call between two tokens.
name_asked() { saaz generate --prompt 'نام تو چیست؟' --max-new-tokens 24 "$@"; }
holds 'a GGUF file of the tiny model' "$make_gguf3n" "$tiny" base.gguf
expect 0 '' train on-gguf --set model.base=base.gguf --set train.learning_rate=0.02 --set train.warmup_steps=1
expect_report 0 'proven' saaz merge --base base.gguf --adapter on-gguf --out from-gguf --dtype f32
expect_report 0 'proven' saaz verify from-gguf
for file in config.json generation_config.json tokenizer.model tokenizer.json tokenizer_config.json model.safetensors; do
  holds "the folder merged from GGUF has $file" test -s "from-gguf/$file"
done
holds 'it stops at <end_of_turn>' test "$(tr -d ' \n' <from-gguf/generation_config.json | grep -c '"eos_token_id":\[1,106\]')" -eq 1
expect 0 '' name_asked --model base.gguf && cp out plain
expect 0 '' name_asked --model base.gguf --adapter on-gguf && cp out adapted
expect 0 '' name_asked --model from-gguf && cp out merged-answer
holds 'the merged folder answers as GGUF and adapter do' cmp adapted merged-answer
holds 'the adapter changes the answer' test "$(<adapted)" != "$(<plain)"
expect_report 0 'proven' saaz merge --base base.gguf --adapter on-gguf --out from-gguf-16
head -c 200000 base.gguf >cut.gguf && expect 3 'cut.gguf' generate cut.gguf

# Other storage formats: each is the model that --quant makes of the original, and says so by the same loss.
evaluate() { expect 0 '' saaz eval --data "$samples/valid.jsonl" "$@"; }
for scheme in nf4 int8; do
  expect_report 0 'relative error' saaz quantize --model "$tiny" --to $scheme --out in-$scheme
  holds "the $scheme folder has a tokenizer" test -s in-$scheme/tokenizer.json
  evaluate --model "$tiny" --quant $scheme && cp out at-load
  evaluate --model in-$scheme
  holds "the $scheme folder is the model quantised at load" cmp out at-load
done
expect 7 'not empty' saaz quantize --model "$tiny" --to nf4 --out in-nf4
expect 3 'quantised already' saaz quantize --model in-nf4 --to int8 --out twice
expect 2 'ends in .gguf' saaz quantize --model "$tiny" --to q8_0 --out folder
expect 2 '--to' saaz quantize --model "$tiny" --to q3 --out folder
expect 2 'subcommand is required' saaz export
expect 2 '--type' saaz export gguf --model "$tiny" --type q9 --out x.gguf
expect_report 0 'matrices in q8_0' saaz export gguf --model "$tiny" --out exported.gguf
expect 7 'exists' saaz export gguf --model "$tiny" --out exported.gguf
expect_report 0 'matrices in q4_0' saaz quantize --model "$tiny" --to q4_0 --out exported-q4.gguf
expect_report 0 'matrices in f16' saaz export ollama --model "$tiny" --type f16 --out for-ollama
holds 'an Ollama folder has a Modelfile' grep -q '^FROM ./model.gguf' for-ollama/Modelfile
for model in exported.gguf exported-q4.gguf for-ollama/model.gguf in-int8; do
  expect 0 '' generate $model --compute-dtype int8
done
expect 0 '' generate in-int8 --compute-dtype llm.int8
expect 2 'are for the CPU' saaz --device cuda generate --model in-int8 --prompt x --compute-dtype int8
expect 0 '' train on-nf4 --set model.base=in-nf4
expect 0 '' train on-int8 --set model.base=in-int8 --set quant.scheme=int8
expect_report 0 'proven' saaz merge --base in-nf4 --adapter on-nf4 --out from-nf4
holds 'the folder merged from NF4 is not quantised' test "$(grep -c quantization_config from-nf4/config.json)" -eq 0
sed -i 's/"quant_method": "bitsandbytes"/"quant_method": "gptq"/' in-int8/config.json
expect 3 "stored quantised by 'gptq'" generate in-int8
LC_ALL=C sed -i 's/\.SCB"/.SCC"/' in-int8/model.safetensors && sed -i 's/gptq/bitsandbytes/' in-int8/config.json
expect 3 'in-int8/model.safetensors' generate in-int8
json_lines quantize --model "$tiny" --to nf4 --out in-nf4-again
json_lines export gguf --model "$tiny" --out again.gguf

# Streams: the answer or JSON on stdout, the log on stderr.
expect 0 '' "$binary" generate --model "$tiny" --prompt سلام --max-new-tokens 2
holds 'generate prints one line, the answer' test "$(wc -l <out)" -eq 1
holds 'generate logs on stderr' grep -q 'tokens in' err
expect 0 '' "$binary" train "${train_flags[@]:2}" --set output.dir=short --set train.max_steps=1
holds 'train prints nothing on stdout' test ! -s out
holds 'train logs on stderr' grep -q 'finished' err
step_lines() { grep -oE '^step +[0-9]+/' "$1" | tr -dc '0-9\n' | paste -sd' '; }
expect 0 '' "$binary" train "${train_flags[@]:2}" --set output.dir=sparse --set train.logging_steps=5
holds 'train.logging_steps 5: the first, every fifth and the last update' test "$(step_lines err)" = '1 5 10 12'
holds 'events.jsonl has all of them' test "$(grep -c '"event": "step"' sparse/events.jsonl)" -eq 12
holds 'the next command is called as this one was' grep -qF "next: $binary merge --base" err
json_lines "${train_flags[@]:1}" --set output.dir=json --set train.max_steps=1
json_lines generate --model "$tiny" --prompt سلام --max-new-tokens 2
json_lines eval --model "$tiny" --data "$samples/valid.jsonl"
json_lines data inspect "$samples/valid.jsonl" --model "$tiny"
json_lines verify merged
poke merged/model.safetensors 4000000
expect_report 8 'FAILED' saaz verify merged

# The data doctor.
expect_report 0 'none found' saaz data validate "$samples/train.jsonl"
expect_report 8 'also in the evaluation file' saaz data validate "$samples/train.jsonl" --against "$samples/train.jsonl"
printf '{"text": "a"}\n{"text": 1}\n' >bad.jsonl
expect_report 3 'expected a string, found an integer' saaz data validate bad.jsonl
expect 3 'no validation file there' saaz data validate "$samples/train.jsonl" --against "$tiny"
expect_report 0 'scored' saaz eval --model "$tiny" --data "$source/tests/golden/parquet/messages-zstd-v2.parquet"
json_lines data validate "$source/tests/golden/parquet/alpaca-gzip-nulls.parquet" --model "$tiny"
printf '{"text": "\xd9\x83"}\r\n' >kaf.jsonl
expect_report 0 'kaf                 1' saaz data normalize kaf.jsonl -o plain.jsonl
holds 'a normalised file differs' test "$(cmp kaf.jsonl plain.jsonl >/dev/null; echo $?)" -eq 1
expect 0 '' saaz data normalize plain.jsonl --revert plain.jsonl.patch -o back.jsonl
holds 'the patch gives the original bytes back' cmp kaf.jsonl back.jsonl
expect 8 'made for another file' saaz data normalize kaf.jsonl --revert plain.jsonl.patch -o back.jsonl
expect 0 '' saaz data preview "$samples/valid.jsonl" --model "$tiny" --loss --rows 2 --html page.html
holds 'a page of two rows with losses' test "$(grep -c '<article>' page.html)" -eq 2 -a "$(grep -c 'class="h[0-7]' page.html)" -gt 2
expect 2 'give --html' saaz data preview "$samples/valid.jsonl" --model "$tiny" --loss

# Chat through a pipe: an answer a line on stdout, commands, and what is saved.
talk() { printf '%s\n' "$@" | saaz chat --model "$tiny" --max-new-tokens 4 >out 2>err; }
expect 2 'bidi' saaz chat --model "$tiny" --bidi sideways
talk سلام /regenerate '/save talk.jsonl' '/save talk.md' /exit 'never said'
holds 'two answers, the same greedy one twice' test "$(wc -l <out)" -eq 2 -a "$(sort -u out | wc -l)" -eq 1
holds 'the conversation is a row of training data' saaz data inspect talk.jsonl --model "$tiny"
holds 'and Markdown for people' grep -q '^## assistant$' talk.md
holds 'without marks of direction' test -z "$(LC_ALL=C.UTF-8 grep -P '[\x{200e}\x{200f}\x{202a}-\x{202e}\x{2066}-\x{2069}]' talk.md talk.jsonl)"
cp talk.md kept.md && talk سلام '/save talk.md'
holds 'a file that is there is not written over' cmp talk.md kept.md

# Watching, and probes: what is refused before anything is written, and that neither changes a byte.
expect 3 'is no run folder' saaz watch "$tiny"
expect 2 'expected HOST:PORT' saaz watch whole --listen nowhere
expect 2 'expected HOST:PORT' train unwatched --set report.watch=localhost
expect 2 'can be reached from other machines' train unwatched --watch=0.0.0.0:0
expect 3 "there is no file or folder 'absent.txt'" train unwatched --set eval.probes=absent.txt
printf '# only a remark\n\n' >remarks.txt
expect 3 'expected 1 to 64 prompts' train unwatched --set eval.probes=remarks.txt
expect 3 'leaves no room for an answer' train unwatched --set eval.probes=default-fa --set model.max_seq_length=16
holds 'nothing is left of a run that was refused' absent unwatched
expect 0 '' train watched --watch=127.0.0.1:0 --set eval.probes=default-fa --set eval.every_steps=4
holds 'probes and dashboard change no byte of the adapter' same_adapter watched whole
holds 'the probes were answered at 0, 4, 8 and 12' test "$(grep -c '"event": "probes"' watched/events.jsonl)" -eq 4
expect_report 0 'update 12 of 12' saaz watch watched --terminal
json_lines watch watched

# A full disk and a read-only one.
mkdir small
if ((EUID != 0)); then
  echo 'skipped    full disk, read-only disk: needs root'
elif mount -t tmpfs -o size=64k tmpfs small; then
  expect 4 'No space left on device' train small/run
  expect 4 'No space left on device' merge whole small/merged
  holds 'nothing is left of a merge without space' absent small/merged
  mount -o remount,ro small
  expect 5 'Read-only file system' train small/other
else
  differs 'full disk, read-only disk: cannot mount a tmpfs'
fi
exit $failed
