"""Tokens and TLS."""

import os
import socket
import subprocess
import threading
from pathlib import Path

import grpc
import grpc.experimental
import pytest

import attention_client
from attention_client import Client, connection, targets
from attention_client import attention_pb2 as pb

pure_only = pytest.mark.parametrize("core", ["pure"], indirect=True)

SCRIPT = Path(__file__).parents[1] / "support" / "certificates.sh"
TOKEN = "secret-token"
HEADER = "Bearer secret-token"
PLAINTEXT = (
    "allow_plaintext_token: the token would travel to {} in plain text, beyond "
    "loopback and Unix sockets: use TLS, or set this option"
)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    folder = tmp_path_factory.mktemp("certificates")
    subprocess.run([SCRIPT, folder], check=True, stderr=subprocess.DEVNULL)
    return folder


def tls(certificates, certificate, *, asks_for_one=False):
    """A server's credentials."""
    key, chain, roots = (
        (certificates / name).read_bytes()
        for name in ("server.key", certificate, "ca.pem")
    )
    return grpc.ssl_server_credentials(
        [(key, chain)], roots if asks_for_one else None, asks_for_one
    )


@pytest.fixture
def serve(start_server):
    """Starts servers that keep the authorization of each call."""

    def start(*arguments):
        server = start_server(*arguments)
        server.authorizations = []

        def answer(request, context):
            headers = dict(context.invocation_metadata())
            server.authorizations.append(headers.get("authorization"))
            return pb.GetCapabilitiesResponse()

        server.answers["GetCapabilities"] = answer
        return server

    return start


def call(target, **arguments):
    with Client(target, timeout=60, **arguments) as client:
        client.capabilities()


def own_address():
    """An address of this machine beyond loopback, if it has one. Nothing is
    sent to find out."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("198.51.100.1", 9))
        except OSError:
            pytest.skip("there is only the loopback interface")
        return probe.getsockname()[0]


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "dns:///localhost",
        "dns:localhost",
        "ipv4:127.0.0.1",
        "[::ffff:127.0.0.1]",
    ],
)
def test_the_token_goes_to_loopback(serve, host):
    server = serve()
    call(f"{host}:{server.port}", token=TOKEN)
    assert server.authorizations == [HEADER]


@pytest.mark.parametrize("scheme", ["unix:", "unix://", "unix-abstract:"])
def test_the_token_goes_to_unix_sockets(serve, tmp_path, scheme):
    address = f"{scheme}{tmp_path}/socket"
    server = serve(address)
    call(address, token=TOKEN)
    assert server.authorizations == [HEADER]


def test_the_token_goes_with_every_method(server):
    seen = []

    def answer(request, context):
        seen.append(dict(context.invocation_metadata())["authorization"])
        context.abort(grpc.StatusCode.UNAUTHENTICATED, "no such token")

    for method in ("ComputeAttention", "GetCapabilities", "Check"):
        server.answers[method] = answer
    with Client(server.address, timeout=60, token=TOKEN) as client:
        for method in (
            lambda: client.compute([[1]], [[1]], [[1]]),
            client.capabilities,
            client.health,
        ):
            with pytest.raises(attention_client.Unauthenticated) as caught:
                method()
            assert TOKEN not in str(caught.value) + repr(caught.value)
        assert TOKEN not in repr(client) + repr(vars(client))
    assert seen == [HEADER] * 3


def test_without_a_token_none_is_sent(serve):
    server = serve()
    call(server.address)
    assert server.authorizations == [None]


@pytest.mark.parametrize(
    "target",
    [
        "192.0.2.1:50051",
        "192.0.2.1",
        "[2001:db8::1]:50051",
        "2001:db8::1",
        "ipv4:127.0.0.1:1,192.0.2.1:2",
        "ipv6:[2001:db8::1]:50051",
        "dns:192.0.2.1:50051",
        "dns:///192.0.2.1:50051",
        "dns://127.0.0.1/192.0.2.1:50051",
    ],
)
def test_an_address_beyond_loopback_is_refused_at_once(target):
    with pytest.raises(ValueError, match="plain text") as caught:
        Client(target, token=TOKEN)
    assert str(caught.value) == PLAINTEXT.format(target)
    Client(target, token=TOKEN, allow_plaintext_token=True).close()
    Client(target, token=TOKEN, tls=True).close()


@pytest.mark.parametrize(
    "target",
    [
        "127.1.2.3:1",
        "::1",
        "localhost",
        "server.example:1",
        "dns://192.0.2.1/name:1",
        "0.0.0.0:1",
        "[::]:1",
        "unix:192.0.2.1",
        "unix-abstract:192.0.2.1",
        "xds:///name",
    ],
)
def test_what_only_the_connection_can_tell(target):
    assert not targets.is_beyond_loopback(target)


def test_what_leads_beyond_loopback_gets_no_token(serve):
    own = own_address()
    server = serve(f"{own}:0")
    # Written so that only the connection can tell, as of a name.
    target = f"[::ffff:{own}]:{server.port}"
    with pytest.raises(attention_client.FailedPrecondition) as caught:
        call(target, token=TOKEN)
    assert caught.value.message == PLAINTEXT.format(target)
    assert server.authorizations == []
    call(target, token=TOKEN, allow_plaintext_token=True)
    assert server.authorizations == [HEADER]


def test_no_proxy_gets_a_token_in_plain_text(serve, monkeypatch):
    """A proxy on loopback would pass for the server itself."""
    server, proxy = serve(), serve()
    target = f"localhost:{server.port}"
    for options in (
        [],
        [
            ("grpc.http_proxy", f"http://{proxy.address}"),
            ("grpc.enable_http_proxy", 1),
        ],
    ):
        call(target, token=TOKEN, channel_options=options)
    monkeypatch.setenv("http_proxy", f"http://{proxy.address}")
    call(target, token=TOKEN)
    monkeypatch.delenv("http_proxy")
    monkeypatch.setenv("GRPC_ADDRESS_HTTP_PROXY", proxy.address)
    monkeypatch.setenv(
        "GRPC_ADDRESS_HTTP_PROXY_ENABLED_ADDRESSES", "127.0.0.0/8"
    )
    call(target, token=TOKEN)
    assert server.authorizations == [HEADER] * 4


@pure_only
def test_credentials_that_do_not_encrypt_get_no_token(serve):
    server = serve()
    insecure = grpc.experimental.insecure_channel_credentials()
    with pytest.raises(attention_client.FailedPrecondition) as caught:
        call(server.address, token=TOKEN, credentials=insecure)
    assert caught.value.message == PLAINTEXT.format(server.address)
    assert server.authorizations == []


def test_the_token_goes_over_tls(serve, certificates):
    server = serve("127.0.0.1:0", tls(certificates, "server.pem"))
    for host in ("127.0.0.1", "localhost"):
        target = f"{host}:{server.port}"
        call(target, token=TOKEN, tls_ca=certificates / "ca.pem")
    assert server.authorizations == [HEADER] * 2


@pure_only
def test_the_token_goes_over_credentials_that_encrypt(serve, certificates):
    server = serve("127.0.0.1:0", tls(certificates, "server.pem"))
    own = grpc.ssl_channel_credentials((certificates / "ca.pem").read_bytes())
    call(server.address, token=TOKEN, credentials=own)
    assert server.authorizations == [HEADER]


def test_a_client_shows_its_certificate(serve, certificates):
    server = serve(
        "127.0.0.1:0", tls(certificates, "server.pem", asks_for_one=True)
    )
    call(
        server.address,
        tls_ca=certificates / "ca.pem",
        tls_cert=str(certificates / "client.pem"),
        tls_key=certificates / "client.key",
    )
    assert server.authorizations == [None]


REFUSED = "the server's certificate was refused: "
# gRPC 1.51, which the native core may stand on, does not say which.
OF_1_51 = (
    "it is out of date, or signed by no authority that the client trusts "
    "(tls_ca)"
)
NOT_FOR = "the server's certificate is not for 127.0.0.1"
# Of newer versions of grpcio.
NOT_FOR_WHAT_THE_TARGET_SAYS = (
    "the server's certificate is not for the name in the target"
)
AFTER_HANDSHAKE = (
    "the server closed the connection after the TLS handshake: it may "
)


@pytest.mark.parametrize(
    ("certificate", "asks_for_one", "files", "cause"),
    [
        (
            "expired.pem",
            False,
            {"tls_ca": "ca.pem"},
            REFUSED + "certificate has expired",
        ),
        (
            "server.pem",
            False,
            {"tls_ca": "other_ca.pem"},
            REFUSED + "unable to get local issuer certificate",
        ),
        (
            "elsewhere.pem",
            False,
            {"tls_ca": "ca.pem"},
            NOT_FOR,
        ),
        (
            "server.pem",
            True,
            {"tls_ca": "ca.pem"},
            AFTER_HANDSHAKE
            + "want a certificate of the client (tls_cert, tls_key)",
        ),
        (
            "server.pem",
            True,
            {
                "tls_ca": "ca.pem",
                "tls_cert": "stranger.pem",
                "tls_key": "client.key",
            },
            AFTER_HANDSHAKE + "not trust the client's certificate (tls_cert)",
        ),
        (
            None,
            False,
            {"tls_ca": "ca.pem"},
            "the server does not speak TLS on this port",
        ),
        (
            "server.pem",
            False,
            {},
            "the server closed the connection at once: "
            + "it may want TLS (tls, tls_ca)",
        ),
    ],
    ids=[
        "expired",
        "authority",
        "name",
        "no client certificate",
        "stranger",
        "TLS against plain text",
        "plain text against TLS",
    ],
)
def test_failures_of_tls_name_the_cause(
    core, serve, certificates, certificate, asks_for_one, files, cause
):
    credentials = certificate and tls(
        certificates, certificate, asks_for_one=asks_for_one
    )
    server = serve("127.0.0.1:0", credentials)
    paths = {name: certificates / file for name, file in files.items()}
    with pytest.raises(attention_client.Unavailable) as caught:
        call(server.address, token=TOKEN, **paths)
    message = caught.value.message
    # What gRPC does not tell, the client cannot.
    if (
        core == "native"
        and cause.startswith(REFUSED)
        and message == REFUSED + OF_1_51
    ):
        cause = message
    if cause == NOT_FOR and message == NOT_FOR_WHAT_THE_TARGET_SAYS:
        cause = message
    assert caught.value.message == cause
    assert (
        str(caught.value) == f"UNAVAILABLE: {cause} (server {server.address})"
    )
    assert server.authorizations == []


@pytest.mark.parametrize(
    ("files", "error"),
    [
        ({"tls_ca": "client.key"}, "has no PEM block 'CERTIFICATE-----'"),
        ({"tls_ca": "damaged.pem"}, "cannot be used: "),
        (
            {"tls_cert": "client.pem", "tls_key": "client.pem"},
            "has no PEM block 'PRIVATE KEY-----'",
        ),
        (
            {"tls_cert": "client.pem", "tls_key": "server.key"},
            "cannot be used: KEY_VALUES_MISMATCH",
        ),
        (
            {"tls_cert": "client.pem", "tls_key": "locked.key"},
            "cannot be used: ",
        ),
    ],
)
def test_files_that_cannot_be_used_are_named(certificates, files, error):
    (certificates / "damaged.pem").write_text(
        "-----BEGIN CERTIFICATE-----\nMII\n-----END CERTIFICATE-----\n"
    )
    subprocess.run(
        [
            *("openssl", "pkcs8", "-topk8", "-passout", "pass:word"),
            *("-in", certificates / "client.key"),
            *("-out", certificates / "locked.key"),
        ],
        check=True,
    )
    paths = {name: certificates / file for name, file in files.items()}
    with pytest.raises(ValueError, match=error) as caught:
        Client("localhost:1", **paths)
    text = str(caught.value)
    assert text.startswith("tls_")
    assert any(f": {path}: " in text for path in paths.values())


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (
            {"token": "a", "token_file": "b"},
            "token_file: got a token as well, wanted only one of both",
        ),
        (
            {
                "tls": True,
                "credentials": grpc.experimental.insecure_channel_credentials(),
            },
            "credentials: got TLS options as well, wanted only one of both",
        ),
    ],
)
def test_options_that_exclude_each_other(arguments, error):
    with pytest.raises(ValueError, match=error):
        Client("localhost:1", **arguments)


@pytest.mark.parametrize(
    "text", [b"abc", b"abc\n", b" \t\r\nabc\r\n\n", b"abc "]
)
def test_white_space_around_a_token_is_not_part_of_it(tmp_path, text):
    file = tmp_path / "token"
    file.write_bytes(text)
    assert connection.token_source(None, str(file))() == "abc"


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (b"", "is empty, wanted a token"),
        (b" \n", "is empty, wanted a token"),
        (b"secret secret", "has white space within the token, wanted one word"),
        (b"secret\nsecret", "has white space within the token, wanted one wo"),
        (b"secr\xc3\xa9t", "has characters that are not printable ASCII"),
        (b"secr\xa0t", "has characters that are not printable ASCII"),
        (b"secr\0t", "has characters that are not printable ASCII"),
        (b"s" * (16 * 1024 + 1), "is longer than 16384 bytes"),
        (b"s" * (32 * 1024 + 1), "is larger than 32768 bytes"),
    ],
)
def test_what_is_not_one_token_is_refused_unseen(tmp_path, text, error):
    file = tmp_path / "token"
    file.write_bytes(text)
    with pytest.raises(ValueError, match=error) as caught:
        Client("localhost:1", token_file=file)
    assert str(caught.value).startswith(f"token_file: {file}: ")
    assert "secr" not in str(caught.value).replace(str(file), "")


def test_a_file_s_name_need_not_be_utf_8(tmp_path):
    file = os.path.join(os.fsencode(tmp_path), b"to\xffken")
    with open(file, "wb") as written:
        written.write(b"abc")
    Client("localhost:1", token_file=os.fsdecode(file)).close()
    os.remove(file)
    with pytest.raises(ValueError, match="token_file: .*to.*ken") as caught:
        Client("localhost:1", token_file=os.fsdecode(file))
    assert os.fsdecode(file) in str(caught.value)


@pure_only  # The C++ client has a test of its own.
def test_a_replaced_file_is_read_again_after_a_second(
    serve, tmp_path, monkeypatch
):
    now = 100.0
    monkeypatch.setattr(connection.time, "monotonic", lambda: now)
    file = tmp_path / "token"
    file.write_text("first")
    server = serve()
    with Client(server.address, token_file=file) as client:
        client.capabilities()
        file.write_text("second")
        now += 0.9
        client.capabilities()
        now += 0.1
        client.capabilities()
        file.write_text("")  # Half written.
        now += 5
        client.capabilities()
        file.unlink()
        now += 5
        client.capabilities()
    assert server.authorizations == [
        f"Bearer {token}"
        for token in ("first", "first", "second", "second", "second")
    ]


def test_a_pipe_is_read_once(tmp_path, monkeypatch):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_text, args=("piped\n",))
    writer.start()
    source = connection.token_source(None, str(path))
    writer.join()
    monkeypatch.setattr(connection, "_READ_AGAIN_AFTER", 0)
    assert source() == "piped"
