#!/usr/bin/env bash
# What `./run gpu-test` makes of this file runs beside its programs, on a machine with a GPU and its driver: op, kernel
# and golden tests, a whole run twice, which must leave the same bytes, a run that is too large for what it may use of
# the card, and one that sees none.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export LD_LIBRARY_PATH=$here/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
source=@source@
# The tests were compiled with the place of their data.
if [[ ! -e $source/tests/golden ]]; then
  mkdir -p "$source"
  ln -sfn "$here"/source/* "$source/"
fi
failed=0
run() {
  echo "== $*"
  "$@" || { failed=$((failed + 1)); echo "FAILED  $1"; }
}
run "$here/ops_test" --gtest_brief=1
run "$here/cuda_kernels_test" --gtest_brief=1
run "$here/cuda_attention_test" --gtest_brief=1
run "$here/cuda_step_test" --gtest_brief=1
run "$here/cuda_step_fused_test" --gtest_brief=1
run "$here/cuda_step_head_test" --gtest_brief=1
run "$here/golden_test" --gtest_brief=1
run "$here/golden_bf16_test" --gtest_brief=1

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for n in 1 2; do run "$here/saaz" --device cuda try --out "$work/$n"; done
hashes() { (cd "$work/$1" && find . -name 'adapter_model.safetensors' -exec sha256sum {} + | sort -k 2); }
if [[ -n $(hashes 1) && $(hashes 1) == "$(hashes 2)" ]]; then
  echo "ok      the same run twice: the same adapter bytes"
else
  failed=$((failed + 1))
  echo "FAILED  the same run twice: other adapter bytes"
fi

# Too large: exit code 4 before anything is written, and one line with the largest kind and its bytes.
for ((n = 0; n < 60; n++)); do cat "$source/data/try/train.jsonl"; done >"$work/rows.jsonl"
too_large() {
  local code=0
  "$here/saaz" --quiet --device cuda train "$source/data/try/recipe.yaml" --set model.base="$source/data/try/model" \
    --set data.train="$work/rows.jsonl" --set data.validation.file="$source/data/try/valid.jsonl" \
    --set data.packing=true --set train.per_device_train_batch_size=512 --set train.recompute=none \
    --set output.dir="$work/refused" --max-gpu-memory 2GiB 2>"$work/err" || code=$?
  cat "$work/err"
  ((code == 4)) && (($(wc -l <"$work/err") == 1)) && [[ ! -e $work/refused/recipe.yaml ]] &&
    grep -qE 'bytes of GPU memory.*most of them are activations [a-z ]+ \([0-9]+ bytes\)' "$work/err"
}
run too_large

# No GPU to be seen: one line says so, and the CPU answers.
without_gpu() {
  CUDA_VISIBLE_DEVICES='' "$here/saaz" generate --model "$source/data/try/model" --prompt سلام --max-new-tokens 2 \
    2>"$work/err" && grep 'no GPU .* running on the CPU' "$work/err" && (($(grep -c GPU "$work/err") == 1))
}
run without_gpu
echo "$failed failed"
((failed == 0))
