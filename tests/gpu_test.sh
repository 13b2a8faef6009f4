#!/usr/bin/env bash
# What `./run gpu-test` makes of this file runs beside its programs, on a machine with a GPU and its driver: op, kernel
# and golden tests, then a whole run twice, which must leave the same bytes.
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
run "$here/cuda_step_test" --gtest_brief=1
run "$here/golden_test" --gtest_brief=1

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
echo "$failed failed"
((failed == 0))
