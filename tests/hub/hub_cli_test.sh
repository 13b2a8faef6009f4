#!/usr/bin/env bash
# fetch, push and bundle as a person runs them, against the fake hub: exit codes, one-line messages, names of fetched models
# in other commands, a machine without a network, a full disk; and that the token is nowhere.
#   hub_cli_test.sh SAAZ_BINARY FAKE_HUB SOURCE_DIR       one line a case; status 1 when any case differs
# As root a full disk is tried as well, on a small tmpfs.
set -uo pipefail
readonly binary=$1 fake_hub=$2 source=$3
readonly secret=CANARY0123456789abcdefghijklmnopq
. "$(dirname "${BASH_SOURCE[0]}")/../cli_testing.sh"
mkfifo stop
"$fake_hub" "$tiny" ready <stop >served &
readonly hub=$!
exec 9>stop
finish() {
  exec 9>&-
  mountpoint -q "$work/small" && umount "$work/small"
  rm -rf "$work"
}
trap finish EXIT
for ((i = 0; i < 500; ++i)); do [[ -s ready ]] && break; sleep 0.02; done
export HF_ENDPOINT HF_HOME=$work/home no_proxy=127.0.0.1 HF_TOKEN
HF_ENDPOINT=$(<ready) HF_TOKEN=hf_$secret
unset HF_HUB_CACHE HUGGINGFACE_HUB_CACHE HF_HUB_OFFLINE HF_TOKEN_PATH

saaz() { timeout 60 "$binary" "$@"; }
# expect CODE FRAGMENT COMMAND...: when CODE is not 0, the last line of stderr must be 'error: ...' with the fragment. All
# that was printed is kept in `printed`.
expect() {
  local code=$1 fragment=$2 found
  shift 2
  tried "$@"
  cat out err >>printed
  if ((found != code)); then
    differs "$*: expected $code, found $found: $(head -c 400 err)"
  elif ((code != 0)) && [[ $(tail -n1 err) != 'error: '*"$fragment"* ]]; then
    differs "$*: expected '$fragment', found: $(head -c 400 err)"
  else
    passed "$code  '$fragment'  $*"
  fi
}

# Fetching; the token only where it belongs.
expect 3 'a token is there (HF_TOKEN), but HF_ENDPOINT is not' saaz fetch test/nothing
expect 3 'has no model test/nothing' saaz fetch test/nothing --send-token
expect 3 'is gated and its terms are not accepted' saaz fetch test/gated --send-token
expect 3 "has no branch, tag or commit 'v9'" saaz fetch test/tiny@v9 --send-token
expect 2 'is no name of a repository' saaz fetch ../tiny
expect 3 'is not in the cache' saaz fetch test/tiny --offline
expect 3 "'saaz fetch test/tiny' gets it" saaz generate --model test/tiny --prompt x
expect 0 '' saaz fetch test/tiny --include '*.json' --send-token
expect 3 'is not whole in the cache' saaz fetch test/tiny --offline
expect 0 '' saaz fetch test/tiny
snapshot=$(<out)
holds 'stdout is the folder of the snapshot' test -s "$snapshot/model.safetensors"
holds 'with the bytes of the model' cmp "$snapshot/model.safetensors" "$tiny/model.safetensors"
expect 0 '' saaz --json fetch test/tiny@v1
holds '--json prints one object' grep -q '^{"schema_version": *1,.*"commit": *"[0-9a-f]\{40\}"' out
expect 0 '' saaz fetch test/chats --dataset
holds 'a dataset lies among the datasets' test -s "home/hub/datasets--test--chats/refs/main"
expect 0 '' env HF_HUB_OFFLINE=1 HF_ENDPOINT=http://127.0.0.1:1 "$binary" fetch test/tiny

# Tokens from files.
printf 'hf_%s\n' "$secret" >token && chmod 600 token
expect 0 '' env -u HF_TOKEN "$binary" fetch test/tiny --hf-token-file token --send-token
expect 0 '' env -u HF_TOKEN HF_TOKEN_PATH="$work/token" "$binary" fetch test/tiny --send-token
cp token home/token && chmod 644 home/token
expect 0 '' env -u HF_TOKEN "$binary" fetch test/tiny --send-token
holds 'a token that others can read is told of' grep -q 'chmod 600' err
rm home/token
printf 'hf_%s\nhf_two' "$secret" >two && expect 2 'two holds no token' saaz fetch test/tiny --hf-token-file two
expect 3 'cannot open none' saaz fetch test/tiny --hf-token-file none

# A fetched model has a name.
expect 0 '' saaz generate --model test/tiny --prompt سلام --max-new-tokens 2
cp out by-name
expect 0 '' saaz generate --model "$tiny" --prompt سلام --max-new-tokens 2
holds 'the name and the folder answer alike' cmp by-name out
expect 3 '' saaz generate --model test/tiny@v1 --prompt x

# A recipe of fetched names. Keys in the environment reach neither the run nor what is told of it.
printf 'recipe: 1\nmodel: { base: test/tiny, max_seq_length: 64 }\ndata: { train: test/chats }\n' >recipe.yaml
printf 'train: { max_steps: 1 }\noutput: { dir: run }\nquant: { scheme: nf4 }\n' >>recipe.yaml
train() { env WANDB_API_KEY="$secret" "$binary" train recipe.yaml "$@"; }
expect 2 "model.revision is of a base named as on the hub" train --set model.base="$tiny" --set model.revision=main
expect 3 "'saaz fetch test/tiny@v9' gets it" train --set model.revision=v9
expect 3 "'saaz fetch test/nothing --dataset' gets it" train --set data.train=test/nothing
expect 0 '' train --set model.revision=main
holds 'the recipe of the run names the snapshot' grep -q "base: .*/snapshots/[0-9a-f]\{40\}" run/recipe.yaml
holds 'the card names base, commit, data and licence' test "$(grep -c 'test/tiny\|test/chats\|cc0-1.0' run/README.md)" -gt 2
holds 'no path of the machine is in the card' test "$(grep -c "$work" run/README.md)" -eq 0
expect 0 '' saaz plan recipe.yaml
expect 0 '' saaz runs ls --in .
expect 0 '' saaz export card run --out card
holds 'the card written again is the same' cmp run/README.md card/README.md
expect 3 'is no run folder' saaz export card "$tiny"

# A machine without a network.
expect 0 '' saaz bundle export test/tiny -o tiny.tar
expect 7 'exists already' saaz bundle export test/tiny -o tiny.tar
expect 3 'is not in the cache' saaz bundle export test/other -o other.tar
expect 0 '' env HF_HOME="$work/island" HF_HUB_OFFLINE=1 "$binary" bundle import tiny.tar
expect 0 '' env HF_HOME="$work/island" HF_HUB_OFFLINE=1 "$binary" generate --model test/tiny --prompt سلام --max-new-tokens 2
holds 'the carried model answers alike' cmp by-name out
head -c 100000 tiny.tar >cut.tar && expect 3 'cut.tar' saaz bundle import cut.tar
printf '\x55' | dd of=tiny.tar bs=1 seek=100000 conv=notrunc 2>/dev/null
expect 8 'wrong checksum' env HF_HOME="$work/other" "$binary" bundle import tiny.tar

# Sending.
cp -r "$tiny" out-model && mkdir out-model/checkpoint-1 && touch out-model/checkpoint-1/x
expect 0 '' env HF_ENDPOINT=http://127.0.0.1:1 "$binary" push out-model me/model --dry-run
holds 'a dry run says what goes by LFS' grep -q '^lfs .*model.safetensors' out
holds 'and what goes in the commit' grep -q '^inline .*config.json' out
holds 'and what is left out' grep -q 'left out: checkpoint-1' err
expect 3 'but HF_ENDPOINT is not https://huggingface.co' saaz push out-model me/model
expect 0 '' saaz push out-model me/model --private --message 'نخستین' --send-token
holds 'stdout is the address of the commit' grep -q "^$HF_ENDPOINT/.*/commit/" out
expect 0 '' saaz push out-model me/model --send-token
holds 'the same again sends nothing' grep -q '^0 files sent' err
expect 0 '' env HF_HOME="$work/back" "$binary" fetch me/model --send-token
holds 'what was sent comes back' cmp "$(<out)/model.safetensors" "$tiny/model.safetensors"
cp token out-model/notes.txt
expect 3 'holds the access token of HF_TOKEN' saaz push out-model me/model --send-token

# A stop is no loss, and the command line of a running fetch holds no secret. The hub is held still meanwhile.
rm -rf home/hub
kill -STOP "$hub"
"$binary" fetch test/tiny --send-token >/dev/null 2>stopped &
process=$!
sleep 0.5
tr '\0' ' ' <"/proc/$process/cmdline" >>printed
holds 'the running fetch was looked at' grep -q 'fetch test/tiny --send-token' printed
kill -INT "$process"
wait "$process"
code=$?
kill -CONT "$hub"
if ((code == 130)); then passed '130  SIGINT'; else differs "SIGINT: expected 130, found $code: $(<stopped)"; fi
holds 'it says how to go on' grep -q 'the same command goes on from here' stopped
expect 0 '' saaz fetch test/tiny

# A full disk.
mkdir small
if ((EUID != 0)); then
  echo 'skipped    full disk: needs root'
elif mount -t tmpfs -o size=64k tmpfs small; then
  expect 4 'make room, or set HF_HOME' env HF_HOME="$work/small" "$binary" fetch test/tiny
else
  differs 'full disk: cannot mount a tmpfs'
fi

# The token: not in what was printed, not in a file that was written, not with the store.
exec 9>&-
wait "$hub"
rm -f token two home/token out-model/notes.txt
holds 'the hub was asked with a token' grep -q 'with a token' served
holds 'the store never was' test "$(grep -c 'store.*with a token' served)" -eq 0
holds 'nothing that was printed holds the token' test "$(grep -c "$secret" printed)" -eq 0
holds 'no file that was written holds the token' test "$(grep -rlF "$secret" . --exclude=served | wc -l)" -eq 0
exit $failed
