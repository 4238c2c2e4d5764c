#!/usr/bin/env bash
# Makes the image docker/Dockerfile starts from out of Debian's packages, for
# machines that reach no image registry. Usage: base_image.sh NAME CACHE_FOLDER
# BUILDAH [OPTION...], where the latter is the command to call buildah by.
# CMake's builds in it go through ccache, whose cache may be mounted at /ccache.
set -euo pipefail
name=$1 cache=$2
shift 2
# Empty: debootstrap's own.
mirror=${DEBIAN_MIRROR:-}

# As it was, so that the layers built upon it stay cached.
"$@" inspect --type=image "$name" >/dev/null 2>&1 && exit

if ! [[ -f $cache/bookworm.tar ]]; then
  mkdir -p "$cache"
  rm -rf "$cache/bookworm"
  debootstrap --variant=minbase --include=ccache bookworm "$cache/bookworm" \
    ${mirror:+"$mirror"}
  # What this machine needs to reach the mirror, the image needs too.
  cp /etc/resolv.conf "$cache/bookworm/etc/"
  cp /etc/apt/apt.conf.d/* "$cache/bookworm/etc/apt/apt.conf.d/"
  tar -C "$cache/bookworm" -cf "$cache/bookworm.tar.part" .
  mv "$cache/bookworm.tar.part" "$cache/bookworm.tar"
  rm -rf "$cache/bookworm"
fi
container=$("$@" from scratch)
"$@" add "$container" "$cache/bookworm.tar" / >/dev/null
# ccache takes the language for a part of what it looks up.
"$@" config --env CMAKE_CXX_COMPILER_LAUNCHER=ccache --env CCACHE_DIR=/ccache \
  --env CCACHE_BASEDIR=/source ${LANG:+--env "LANG=$LANG"} "$container"
"$@" commit -q "$container" "$name" >/dev/null
"$@" rm "$container" >/dev/null
