"""Builds the image of docker/Dockerfile with buildah, once a session."""

import json
import os
import shutil
from pathlib import Path

import pytest

from docker.container import (
    BUILDAH,
    CACHE,
    REPOSITORY,
    Server,
    buildah,
    run,
    run_in,
)

BASE = "localhost/attention-test-base"
IMAGE = "localhost/attention-test"


@pytest.fixture(scope="session")
def image():
    """The image's name, once it is built."""
    assert os.geteuid() == 0, "buildah's chroot isolation needs root"
    run(REPOSITORY / "tests/docker/base_image.sh", BASE, CACHE, *BUILDAH)
    volumes = []
    if shutil.which("ccache"):
        # It has what the preset release compiled, on the same Debian.
        cache = Path(run("ccache", "--get-config=cache_dir"))
        cache.mkdir(parents=True, exist_ok=True)
        volumes.append(f"--volume={cache}:/ccache")
    buildah(
        "bud",
        "--format=docker",
        "--isolation=chroot",
        "--pull-never",
        "--layers",
        *volumes,
        f"--build-arg=BASE_IMAGE={BASE}",
        f"--file={REPOSITORY}/docker/Dockerfile",
        f"--tag={IMAGE}",
        str(REPOSITORY),
    )
    return IMAGE


@pytest.fixture(scope="session")
def config(image):
    """What the image says about how to run it."""
    inspected = json.loads(buildah("inspect", "--type=image", image))
    return inspected["Docker"]["config"]


@pytest.fixture(scope="session")
def container(image):
    name = buildah("from", "--pull-never", image)
    yield name
    buildah("rm", name)


@pytest.fixture(scope="session")
def root(container):
    """The container's files, seen from here."""
    yield Path(buildah("mount", container))
    buildah("umount", container)


@pytest.fixture
def server(container, config):
    """The image's server, on a free port instead of the one it declares."""
    command = [*config["Entrypoint"], "--listen=127.0.0.1:0"]
    with Server(*run_in(container, *command)) as server:
        yield server
