#!/usr/bin/env bash
# Starts a server on a free port, asks it what attention is and what a layer of
# a real model attends to, and stops it. Usage: demo.sh FOLDER_OF_BINARIES
set -euo pipefail
cd "$(dirname "$0")/.."
bin=$1

log=$(mktemp)
"$bin/attention_server" --listen=127.0.0.1:0 >"$log" 2>"$log.err" &
server=$!
trap 'kill $server 2>/dev/null || true; rm -f "$log" "$log.err"' EXIT

address=
until address=$(sed -n 's/^listening on //p' "$log") && [[ -n $address ]]; do
  kill -0 $server 2>/dev/null || { cat "$log.err" >&2; exit 1; }
  sleep 0.05
done

say() { printf '\n%s\n' "$*"; }

say "One query over two keys, step by step:"
"$bin/attention_client" compute --server="$address" --explain \
  --query='[[1,0]]' --key='[[0.5,0.5],[0.3,0.7]]' --value='[[1,0],[0.5,0.5]]'

say "What the tokens of a sentence attend to in a layer of a real model:"
sample=examples/minilm_layer0.safetensors
"$bin/attention_client" compute --server="$address" --explain \
  --query=$sample:query --key=$sample:key --value=$sample:value

say "Stopping the server."
kill -TERM $server
wait $server
