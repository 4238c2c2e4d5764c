"""One version number, in CMakeLists.txt; the packages of all languages have it."""

import json
import re
import tomllib
import xml.etree.ElementTree as ET

import attention_client
from polyglot.places import CLIENTS, REPOSITORY

CMAKE = (REPOSITORY / "CMakeLists.txt").read_text()
VERSION = re.search(r"project\([^)]*?VERSION\s+([\d.]+)", CMAKE)[1]


def test_typescript():
    package = json.loads((CLIENTS / "typescript/package.json").read_text())
    lock = json.loads((CLIENTS / "typescript/package-lock.json").read_text())
    assert package["version"] == VERSION
    assert lock["version"] == VERSION


def test_rust():
    package = tomllib.loads((CLIENTS / "rust/Cargo.toml").read_text())
    assert package["package"]["version"] == VERSION


def test_java():
    pom = ET.parse(CLIENTS / "java/pom.xml").getroot()
    version = pom.find("{http://maven.apache.org/POM/4.0.0}version")
    assert version.text == VERSION


def test_go():
    """Go's tag is the version; the module tells it to servers."""
    sources = "".join(
        path.read_text() for path in (CLIENTS / "go").glob("*.go")
    )
    assert f'"{VERSION}"' in sources


def test_python():
    assert attention_client.__version__ == VERSION
