#!/usr/bin/env bash
# Starts a server, asks it what attention is and what a layer of a real model
# attends to, and stops it; with --stay only once it is interrupted.
# Usage: demo.sh FOLDER_OF_BINARIES [--stay]
set -euo pipefail
cd "$(dirname "$0")/.."
bin=$1 stay=${2:-}
if [[ -n $stay && $stay != --stay ]]; then
  echo "demo: got '$stay', wanted --stay or nothing" >&2
  exit 2
fi

log=$(mktemp) server=
trap 'kill $server 2>/dev/null || true; rm -f "$log" "$log.err"' EXIT

# start PORT HTTP_PORT: fails if the server does.
start() {
  "$bin/attention_server" --listen="127.0.0.1:$1" --http-listen="127.0.0.1:$2" >"$log" 2>"$log.err" &
  server=$!
  # The line of HTTP comes last.
  until page=$(sed -n 's/^listening on \(http:.*\)/\1/p' "$log") && [[ -n $page ]]; do
    kill -0 $server 2>/dev/null || return 1
    sleep 0.05
  done
}

# One that stays has the ports of the documentation, unless they are taken.
[[ -n $stay ]] && start 50051 9464 || start 0 0 || { cat "$log.err" >&2; exit 1; }

address=$(sed -n '1s/^listening on //p' "$log")

say() { printf '\n%s\n' "$*"; }

say "One query over two keys, step by step:"
"$bin/attention_client" compute --server="$address" --explain \
  --query='[[1,0]]' --key='[[0.5,0.5],[0.3,0.7]]' --value='[[1,0],[0.5,0.5]]'

say "What the tokens of a sentence attend to in a layer of a real model:"
sample=examples/minilm_layer0.safetensors
"$bin/attention_client" compute --server="$address" --explain \
  --query=$sample:query --key=$sample:key --value=$sample:value

if [[ -n $stay ]]; then
  trap 'kill -TERM $server 2>/dev/null || true' INT TERM  # That ends the wait.
  say "The server stays, at $address. Its page, to open in a browser: $page/"
  echo "Ctrl+C stops it."
  wait $server || true
  trap - INT TERM
fi

say "Stopping the server."
kill -TERM $server 2>/dev/null || true
wait $server
