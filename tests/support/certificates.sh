#!/bin/sh
# Makes the certificates that tests of TLS need, in the folder that is named:
#   ca.pem other_ca.pem      two authorities
#   server.pem server.key    for localhost and 127.0.0.1, signed by the first
#   elsewhere.pem            the same for elsewhere.example
#   expired.pem              the same, out of date
#   client.pem client.key    a client's, signed by the first
#   stranger.pem             the same client's, signed by the other
# Every key but the client's is server.key or an authority's own.
set -eu
cd "$1"

key() {
  openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$1"
}

authority() {  # NAME
  key "$1.key"
  openssl req -x509 -new -key "$1.key" -subj "/CN=$1" -days 2 -out "$1.pem" \
    -addext basicConstraints=critical,CA:true \
    -addext keyUsage=critical,keyCertSign
}

# "openssl ca", which wants a list of what it has issued: no other command of
# OpenSSL 3.0 and of later versions alike makes what has expired.
cat >ca.config <<'CONFIG'
[ca]
default_ca = any
[any]
database = issued.txt
new_certs_dir = .
rand_serial = yes
unique_subject = no
default_md = sha256
policy = any_name
[any_name]
commonName = supplied
CONFIG
: >issued.txt

certificate() {  # NAME KEY AUTHORITY ALTERNATIVE_NAMES VALIDITY...
  printf 'subjectAltName=%s\n' "$4" >"$1.extensions"
  openssl req -new -key "$2" -subj "/CN=$1" -out "$1.request"
  name=$1 authority=$3
  shift 4
  openssl ca -batch -config ca.config -notext -in "$name.request" \
    -cert "$authority.pem" -keyfile "$authority.key" \
    -extfile "$name.extensions" -out "$name.pem" "$@"
}

authority ca
authority other_ca
key server.key
key client.key
certificate server server.key ca DNS:localhost,IP:127.0.0.1 -days 2
certificate elsewhere server.key ca DNS:elsewhere.example -days 2
certificate expired server.key ca DNS:localhost,IP:127.0.0.1 \
  -startdate 20200101000000Z -enddate 20200102000000Z
certificate client client.key ca DNS:client.example -days 2
certificate stranger client.key other_ca DNS:client.example -days 2
