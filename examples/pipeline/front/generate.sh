#!/bin/sh
# Writes pipelinepb anew from ../pipeline.proto:
#   front/generate.sh [FOLDER]
# Needs protoc, or Python with grpcio-tools (PROTOC="python -m grpc_tools.protoc").
set -eu
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$here/pipelinepb}
plugins=$(mktemp -d)
trap 'rm -rf "$plugins"' EXIT
GOBIN=$plugins GOFLAGS=-mod=mod go install google.golang.org/protobuf/cmd/protoc-gen-go@v1.36.11
GOBIN=$plugins GOFLAGS=-mod=mod go install google.golang.org/grpc/cmd/protoc-gen-go-grpc@v1.6.1
mkdir -p "$out"
package=Mpipeline.proto=front/pipelinepb
PATH=$plugins:$PATH ${PROTOC:-protoc} -I"$here/.." \
  --go_out="$out" --go_opt=paths=source_relative,$package \
  --go-grpc_out="$out" --go-grpc_opt=paths=source_relative,$package \
  pipeline.proto
