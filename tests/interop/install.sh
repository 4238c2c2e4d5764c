#!/usr/bin/env bash
# Installs what tools.txt lists, unless it is there already: programs into
# FOLDER/bin, Node's packages into FOLDER/node_modules, a Go module with the
# libraries into FOLDER/go, Python's packages into the environments FOLDER/triton
# and FOLDER/schema,
# and the files of wheels into FOLDER/wheels.
# Usage: install.sh FOLDER
set -euo pipefail
list=$(cd "$(dirname "$0")" && pwd)/tools.txt
mkdir -p "$1"
cd "$1"
cmp -s "$list" installed.txt && exit

# go_module FOLDER MODULE@VERSION...: a new module there that needs those. Not `go
# install`, which asks what other versions there are.
go_module() {
  local folder=$1
  shift
  mkdir -p "$folder"
  cd "$folder"
  go mod init interop
  go mod edit "${@/#/-require=}"
} 2>/dev/null

rm -rf bin go programs node_modules package.json package-lock.json triton schema wheels
mkdir bin
bin=$PWD/bin
while read -r kind name version folder; do
  case $kind in
    go)
      echo "Installing: $name $version"
      (go_module "programs/${name##*/}" "$name@$version" &&
        go build -mod=mod -o "$bin/" "$name/$folder")
      ;;
    library) libraries+=("$name@$version") ;;
    npm) packages+=("$name@$version") ;;
    pip) python_packages+=("$name==$version") ;;
    schema) schema_packages+=("$name==$version") ;;
    wheel) wheels+=("$name==$version") ;;
  esac
done < <(grep -v '^#' "$list")
(go_module go "${libraries[@]}")
echo "Installing: ${packages[*]}"
npm install --silent --no-audit --no-fund --prefix . "${packages[@]}"
echo "Installing: ${python_packages[*]}"
python3 -m venv triton
triton/bin/pip install -q --no-deps "${python_packages[@]}"
echo "Installing: ${schema_packages[*]}"
python3 -m venv schema
schema/bin/pip install -q --no-deps "${schema_packages[@]}"
echo "Unpacking: ${wheels[*]}"
triton/bin/pip download -q --no-deps --only-binary=:all: -d wheels "${wheels[@]}"
for wheel in wheels/*.whl; do
  python3 -m zipfile -e "$wheel" wheels
  rm "$wheel"
done
# Unpacked files have lost that they are programs.
find wheels -name perf_analyzer -exec chmod +x {} + -exec ln -sf ../{} bin/ \;
cp "$list" installed.txt
