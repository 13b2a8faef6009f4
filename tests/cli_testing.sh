# What the tests of the command line share; sourced, with $binary and $source set. They work in a folder of their own.
work=$(mktemp -d)
readonly work tiny=$source/data/try/model samples=$source/data/try
trap 'mountpoint -q "$work/small" && umount "$work/small"; rm -rf "$work"' EXIT
cd "$work" || exit 1
failed=0

passed() { echo "ok      $*" | tr '\n' ' ' | cut -c1-150; }
differs() { echo "FAILED  $*"; failed=1; }

# tried COMMAND...: runs it and leaves its exit code in `found`, what it prints in the files out and err.
tried() { "$@" >out 2>err </dev/null; found=$?; }

# expect CODE FRAGMENT COMMAND...: when CODE is not 0, stderr must be one line 'error: ...' that holds the fragment.
expect() {
  local code=$1 fragment=$2 found
  shift 2
  tried "$@"
  local what="$code  '$fragment'  ${label:-${*//"$source"/.}}"
  if ((found != code)); then
    differs "$what: expected $code, found $found: $(head -c 400 err)"
  elif ((code != 0)) && { (($(wc -l <err) != 1)) || [[ $(<err) != 'error: '*"$fragment"* ]]; }; then
    differs "$what: expected one line with the fragment, found: $(head -c 400 err)"
  else
    passed "$what"
  fi
}

# ends CODE COMMAND...: the exit code alone.
ends() {
  local code=$1 found
  shift
  tried "$@"
  if ((found == code)); then passed "$code  $*"; else differs "$*: expected $code, found $found: $(head -c 400 err)"; fi
}

# expect_report CODE FRAGMENT COMMAND...: the same for commands whose finding is a report on stdout.
expect_report() {
  local code=$1 fragment=$2 found
  shift 2
  tried "$@"
  local what="$code  '$fragment'  ${*//"$source"/.}"
  if ((found == code)) && grep -qF -- "$fragment" out; then passed "$what"; else
    differs "$what: expected $code, found $found: $(head -c 400 out err)"
  fi
}

# holds WHAT COMMAND...: the command must succeed.
holds() {
  local what=$1
  shift
  if "$@" >/dev/null 2>&1; then passed "   $what"; else differs "$what: expected success of '$*'"; fi
}

readonly train_flags=(--quiet train "$samples/recipe.yaml" --set model.base="$tiny" --set data.train="$samples/train.jsonl"
  --set data.validation.file="$samples/valid.jsonl" --set train.max_steps=12 --set output.save_steps=2 --set eval.every_steps=0)
# A command that waits for ever, say on a named pipe, must not hold up the test.
saaz() { timeout 60 "$binary" --quiet "$@"; }
train() { timeout 60 "$binary" "${train_flags[@]}" --set output.dir="$1" "${@:2}"; }
generate() { saaz generate --model "$1" --prompt سلام --max-new-tokens 2 "${@:2}"; }
merge() { saaz merge --base "$tiny" --adapter "$1" --out "$2"; }
same_adapter() { cmp "$1/adapter_model.safetensors" "$2/adapter_model.safetensors"; }
poke() { printf '\x55' | dd of="$1" bs=1 seek="$2" conv=notrunc 2>/dev/null; }
absent() { [[ ! -e $1 ]]; }

# json_lines COMMAND...: with --json, stdout holds objects, one a line.
json_lines() {
  expect 0 '' saaz --json "$@"
  holds "$1 $2 --json prints objects, one a line" test -s out -a "$(grep -cv '^{".*}$' out)" -eq 0
}
