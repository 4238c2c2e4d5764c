"""Why a connection could not be made, in words.

gRPC tells it in words alone, with the names of OpenSSL's errors in them.
"""

from __future__ import annotations

import re

import grpc

from attention_client.connection import Security


def misplaced_token(error: grpc.RpcError) -> bool:
    """Whether the call failed because the token would have travelled in plain
    text."""
    text = error.details() or ""
    return "neither UDS or TCP loopback" in text or (
        error.code() is grpc.StatusCode.UNAUTHENTICATED
        and "sufficient security level" in text
    )


def cause(error: grpc.RpcError, security: Security) -> str:
    """Why there is no connection; "" where gRPC's text does not tell."""
    text = error.details() or ""
    if error.code() is not grpc.StatusCode.UNAVAILABLE:
        return ""
    if found := re.search("CERTIFICATE_VERIFY_FAILED: ([^;]+)", text):
        # gRPC may add OpenSSL's code for "no other error".
        return (
            "the server's certificate was refused: "
            f"{found[1].removesuffix(': OK')}"
        )
    if found := re.search("Peer name (.+) is not in peer certificate", text):
        return f"the server's certificate is not for {found[1]}"
    if "Hostname Verification Check failed" in text:
        return "the server's certificate is not for the name in the target"
    if "WRONG_VERSION_NUMBER" in text:
        return "the server does not speak TLS on this port"
    # The server has accepted the connection, and ended it before HTTP/2 began.
    # Why, neither end tells.
    if "last error: " not in text or not re.search(
        "Socket closed|[Cc]onnection reset", text
    ):
        return ""
    if security.plaintext:
        return (
            "the server closed the connection at once: it may want TLS (tls, "
            "tls_ca)"
        )
    if not security.tls:
        return ""
    what = (
        "may not trust the client's certificate (tls_cert)"
        if security.tls_cert
        else "may want a certificate of the client (tls_cert, tls_key)"
    )
    return (
        f"the server closed the connection after the TLS handshake: it {what}"
    )
