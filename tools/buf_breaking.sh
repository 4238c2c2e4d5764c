#!/usr/bin/env bash
# Tells whether the protos break what users have: the last release, or before
# the first release the commit this work started from. A deliberate break goes
# to `breaking.ignore` in proto/buf.yaml, with its reason.
# Usage: buf_breaking.sh [BUF]
set -euo pipefail
cd "$(dirname "$0")/.."

# base: the commit to compare with; nothing if there is none yet.
base() {
  git describe --tags --abbrev=0 --match 'v*' 2>/dev/null && return
  local head start
  head=$(git rev-parse HEAD)
  start=$(git merge-base HEAD origin/main 2>/dev/null) || start=$head
  if [[ $start == "$head" ]]; then
    start=$(git rev-parse --verify --quiet HEAD~1) || true
  fi
  echo "$start"
}

commit=$(base)
if [[ -z $commit ]] ||
  ! git cat-file -e "$commit:proto/buf.yaml" 2>/dev/null; then
  echo 'buf breaking: nothing to compare with yet'
  exit
fi
old=$(mktemp -d)
trap 'rm -rf "$old"' EXIT
git archive "$commit" proto | tar -x -C "$old"
"${1:-buf}" breaking proto --against "$old/proto"
