#!/usr/bin/env bash
# Builds and tests with the newest gRPC, protobuf and GCC that Debian has, in a
# chroot: sid, with gRPC and protobuf from experimental. As root.
# Usage: compat.sh FOLDER, which keeps the chroot and the build (some 2 GB).
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p "$1/build"
folder=$(realpath "$1")
root=$folder/root
# Empty: debootstrap's own.
mirror=${DEBIAN_MIRROR:-}

make_chroot() {
  rm -rf "$root"
  debootstrap --variant=minbase sid "$root" ${mirror:+"$mirror"}
  # What this machine needs to reach the mirror, the chroot needs too.
  cp /etc/resolv.conf "$root/etc/"
  cp /etc/apt/apt.conf.d/* "$root/etc/apt/apt.conf.d/"
  sed -n 's/ sid / experimental /p' "$root/etc/apt/sources.list" \
    >"$root/etc/apt/sources.list.d/experimental.list"
  cat >"$root/etc/apt/preferences.d/grpc" <<'PIN'
Package: libgrpc* libgpr* protobuf-compiler* libprotobuf* libprotoc* libupb* libutf8* libaddress-sorting*
Pin: release a=experimental
Pin-Priority: 900
PIN
  touch "$folder/chroot_made"
}

[[ -f $folder/chroot_made ]] || make_chroot
sed 's/#.*//' tools/packages/build.txt | xargs echo >"$root/packages"
# shellcheck disable=SC2016  # Expanded by the shell inside.
unshare --mount bash -euc '
  root=$1
  mkdir -p "$root/source" "$root/build"
  mount --bind . "$root/source"
  mount --bind "$root/../build" "$root/build"
  mount -t proc proc "$root/proc"
  mount --rbind /dev "$root/dev"
  exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 \
    JOBS="${JOBS:-$(nproc)}" chroot "$root" bash -euxc "$2"' bash "$root" '
  apt-get update -q
  DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends \
    $(cat /packages)
  dpkg-query -W libgrpc++-dev libprotobuf-dev libabsl-dev libhwy-dev g++
  cd /source
  cmake -S . -B /build -G Ninja -DCMAKE_BUILD_TYPE=Release \
    -DATTENTION_PRECOMPILE_HEADERS=ON
  cmake --build /build -j "$JOBS"
  ctest --test-dir /build -j "$JOBS" --output-on-failure --no-tests=error'
