"""The image of docker/Dockerfile, really built and run."""

import os
import subprocess
from pathlib import Path

import pytest
import yaml

from attention_client import Client
from docker.container import REPOSITORY, Server, run_in

DEFAULT_ADDRESS = "127.0.0.1:50051"
# 40.6 with calls over HTTP and the page, which took the binary from 5.1 to 6.3 MB
# before it is stripped.
LARGEST_MB = 42

# Runs the rest as the user $2, in the folder $1 made read-only.
READ_ONLY_CHROOT = """
mount --bind "$1" "$1"
mount -o remount,bind,ro "$1"
root=$1 user=$2
shift 2
exec chroot --userspec="$user" "$root" "$@"
"""


def size_mb(root):
    files = (path.lstat() for path in root.rglob("*"))
    return sum({info.st_ino: info.st_size for info in files}.values()) / 1e6


def test_says_how_to_run_it(config):
    assert config["User"] == "65532:65532"
    assert config["Entrypoint"] == ["/usr/bin/attention_server"]
    assert config["Cmd"] == ["--listen=0.0.0.0:50051", "--allow-plaintext"]
    assert list(config["ExposedPorts"]) == ["50051/tcp"]
    assert config["StopSignal"] == "SIGTERM"


def test_is_small(root, capsys):
    size = size_mb(root)
    with capsys.disabled():
        print(f"\nimage size: {size:.1f} MB")
    assert size < LARGEST_MB


def test_holds_only_what_is_needed(root):
    assert sorted(os.listdir(root / "usr/bin")) == [
        "attention_client",
        "attention_server",
    ]
    assert not (root / "bin").exists()
    certificates = (root / "etc/ssl/certs/ca-certificates.crt").read_text()
    assert "BEGIN CERTIFICATE" in certificates
    zone = (root / "usr/share/zoneinfo/Europe/Berlin").read_bytes()
    assert zone.startswith(b"TZif")


def test_server_is_not_root(server):
    status = Path(f"/proc/{server.pid}/status").read_text()
    assert "\nUid:\t65532\t65532\t65532\t65532\n" in status
    assert "\nGid:\t65532\t65532\t65532\t65532\n" in status


def exit_status(container, command, environment=None):
    return subprocess.run(
        run_in(container, *command, environment=environment), check=False
    ).returncode


def health_command(config, address):
    kind, *command = config["Healthcheck"]["Test"]
    assert kind == "CMD"
    assert f"--server={DEFAULT_ADDRESS}" in command
    return [part.replace(DEFAULT_ADDRESS, address) for part in command]


def test_health_check_of_a_server(server, container, config):
    command = health_command(config, server.address)
    assert exit_status(container, command) == 0


def test_health_check_asks_no_proxy(server, container, config):
    # As Docker sets it in every container of a user who has one configured.
    command = health_command(config, server.address)
    proxy = {"http_proxy": "http://127.0.0.1:1"}
    assert exit_status(container, command, proxy) == 0


def test_health_check_without_a_server(container, config, tmp_path):
    command = health_command(config, f"unix:{tmp_path}/nobody-listens")
    assert exit_status(container, command) != 0


def test_answers_the_host(server):
    with Client(server.address, timeout=60) as client:
        result = client.compute(
            [[1.0, 0.0]], [[0.5, 0.5], [0.3, 0.7]], [[1.0, 0.0], [0.5, 0.5]]
        )
    assert result.output.tolist()[0] == pytest.approx(
        [0.767648, 0.232352], abs=1e-6
    )


def test_client_of_compose_file(server, container):
    text = (REPOSITORY / "docker/compose.yaml").read_text()
    client = yaml.safe_load(text)["services"]["client"]
    command = [client["entrypoint"], *client["command"]]
    assert "--server=server:50051" in command
    command = [part.replace("server:50051", server.address) for part in command]
    output = subprocess.run(
        run_in(container, *command),
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout
    assert "0.7676" in output


def test_drains_at_sigterm(server):
    assert server.stop() == 0


def test_root_may_be_read_only(root, config):
    command = ["unshare", "--mount", "sh", "-euc", READ_ONLY_CHROOT, "sh"]
    command += [root, config["User"], *config["Entrypoint"]]
    with (
        Server(*command, "--listen=127.0.0.1:0") as server,
        Client(server.address, timeout=60) as client,
    ):
        result = client.compute([[1.0]], [[1.0]], [[2.0]])
    assert result.output.tolist() == [[2.0]]
