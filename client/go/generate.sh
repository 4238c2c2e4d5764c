#!/bin/sh
# Writes attentionpb anew from the repository's proto folder:
#   client/go/generate.sh [FOLDER]
# Needs protoc, or Python with grpcio-tools (PROTOC="python -m grpc_tools.protoc").
# The plugins' versions are pinned here; the attentionpb test runs this script.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$here/attentionpb}
proto=$(cd "$here/../../proto" && pwd)
package=github.com/attention-service/attention-service/client/go/attentionpb
plugins=$(mktemp -d)
trap 'rm -rf "$plugins"' EXIT
GOBIN=$plugins GOFLAGS=-mod=mod go install google.golang.org/protobuf/cmd/protoc-gen-go@v1.36.11
GOBIN=$plugins GOFLAGS=-mod=mod go install google.golang.org/grpc/cmd/protoc-gen-go-grpc@v1.6.1
mkdir -p "$out"
a=attention/v1/attention.proto
s=attention/v1/session.proto
PATH=$plugins:$PATH ${PROTOC:-protoc} -I"$proto" \
  --go_out="$out" --go_opt=module=$package,M$a=$package,M$s=$package \
  --go-grpc_out="$out" --go-grpc_opt=module=$package,M$a=$package,M$s=$package \
  $a $s
