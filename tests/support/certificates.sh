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

certificate() {  # NAME KEY AUTHORITY DAYS ALTERNATIVE_NAMES
  printf 'subjectAltName=%s\n' "$5" >"$1.extensions"
  openssl req -new -key "$2" -subj "/CN=$1" |
    openssl x509 -req -CA "$3.pem" -CAkey "$3.key" -set_serial 1 \
      -days "$4" -extfile "$1.extensions" -out "$1.pem"
}

authority ca
authority other_ca
key server.key
key client.key
certificate server server.key ca 2 DNS:localhost,IP:127.0.0.1
certificate elsewhere server.key ca 2 DNS:elsewhere.example
certificate expired server.key ca -1 DNS:localhost,IP:127.0.0.1
certificate client client.key ca 2 DNS:client.example
certificate stranger client.key other_ca 2 DNS:client.example
