#!/bin/sh
# Lays out the root of the final image in a folder: the given programs, the
# shared libraries they load, CA certificates, time zones, and the few files of
# /etc that name resolution reads. Usage: collect_files.sh FOLDER PROGRAM...
set -eu
root=$1
shift

install -d "$root/usr/bin" "$root/etc/ssl/certs" "$root/usr/share"
install -d -m 1777 "$root/tmp"
install --strip -t "$root/usr/bin" "$@"

# ldd prints "name => /path (address)", and the loader as "/path (address)".
ldd "$@" | grep -o '/[^ ]* (0x' | cut -d ' ' -f 1 | sort -u |
  xargs cp -L --parents -t "$root"

cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
cp -a /usr/share/zoneinfo "$root/usr/share/"
# The same zones twice more: with and without leap seconds.
rm -rf "$root/usr/share/zoneinfo/posix" "$root/usr/share/zoneinfo/right"

echo 'hosts: files dns' >"$root/etc/nsswitch.conf"
echo 'attention:x:65532:65532::/:/' >"$root/etc/passwd"
echo 'attention:x:65532:' >"$root/etc/group"
