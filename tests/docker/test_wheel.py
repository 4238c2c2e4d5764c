"""The native wheel of the Python client, where there are neither a compiler nor
gRPC's libraries: in a container with Debian's Python alone."""

import subprocess
import sys

import pytest

from docker.container import BUILDAH, CACHE, REPOSITORY, buildah, run, run_in

BASE = "localhost/attention-test-base"
IMAGE = "localhost/attention-test-python"
# What pip would bring along; of tests/requirements.txt.
NEEDED = (
    "googleapis-common-protos",
    "grpcio",
    "grpcio-health-checking",
    "numpy",
    "protobuf",
    "typing_extensions",
)
USE = """
import shutil, sys
import numpy as np
from attention_client import Client
assert shutil.which("cc") is None
eye = np.eye(2, dtype=np.float32)
with Client(sys.argv[1], timeout=60) as client:
    print(client.compute(eye, eye, eye).output[0, 0])
"""


def make_image():
    run(REPOSITORY / "tests/docker/base_image.sh", BASE, CACHE, *BUILDAH)
    name = buildah("from", "--pull-never", BASE)
    install = (
        "apt-get update -q && DEBIAN_FRONTEND=noninteractive "
        "apt-get install -qy --no-install-recommends python3"
    )
    run(*run_in(name, "sh", "-euc", install))
    buildah("commit", "-q", name, IMAGE)
    buildah("rm", name)


@pytest.fixture(scope="module")
def container(tmp_path_factory):
    """A container with Python and the wheel."""
    if not buildah("images", "-q", "--filter", f"reference={IMAGE}"):
        make_image()
    packages = tmp_path_factory.mktemp("packages")
    pins = (REPOSITORY / "tests/requirements.txt").read_text().splitlines()
    (wheel,) = (REPOSITORY / "build/wheels").glob("*manylinux*.whl")
    run(
        *(sys.executable, "-m", "pip", "install", "-q", "--no-deps"),
        f"--target={packages}",
        wheel,
        *(pin for pin in pins if pin.partition("==")[0] in NEEDED),
    )
    name = buildah("from", "--pull-never", IMAGE)
    buildah("copy", "-q", name, str(packages), "/packages")
    yield name
    buildah("rm", name)


@pytest.mark.parametrize("core", ["native", "pure"])
def test_a_call(container, server_address, core):
    environment = {"PYTHONPATH": "/packages", "ATTENTION_CLIENT_CORE": core}
    command = ["python3", "-c", USE, server_address]
    output = subprocess.run(
        run_in(container, *command, environment=environment),
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout
    assert output == "0.66976154\n"
