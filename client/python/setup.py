"""Generates the protobuf modules while the package is built.

The one copy of the .proto files is that of the repository, two folders up; a
source distribution carries them along. Everything else is in pyproject.toml.

The wheel is pure Python, unless the variable ATTENTION_CLIENT_NATIVE names the
native core, a file _native.*.so that CMake has built (./dev wheel).
"""

import os
import re
import shutil
import tempfile
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
PACKAGE = Path("attention/v1")
PROTOS = (PACKAGE / "attention.proto", PACKAGE / "session.proto")
NATIVE = os.environ.get("ATTENTION_CLIENT_NATIVE")


def proto_root() -> Path:
    carried = HERE / "proto"
    return carried if carried.is_dir() else REPOSITORY / "proto"


def version() -> str:
    """That of the project: CMakeLists.txt says it, and no other file."""
    carried = HERE / "PKG-INFO"
    if carried.is_file():
        return re.search(r"(?m)^Version: (\S+)", carried.read_text())[1]
    cmake = (REPOSITORY / "CMakeLists.txt").read_text()
    return re.search(r"project\([^)]*?VERSION\s+([\d.]+)", cmake)[1]


def generate(package: Path) -> None:
    # Imported here: making an sdist needs no protoc.
    from grpc_tools import protoc

    with tempfile.TemporaryDirectory() as out:
        status = protoc.main(
            [
                "protoc",
                f"-I{proto_root()}",
                # Of google.protobuf.
                f"-I{Path(protoc.__file__).parent / '_proto'}",
                f"--python_out={out}",
                f"--pyi_out={out}",
                *map(str, PROTOS),
            ]
        )
        if status != 0:
            raise RuntimeError(f"protoc failed on {proto_root() / PACKAGE}")
        for proto in PROTOS:
            for suffix in ("_pb2.py", "_pb2.pyi"):
                name = proto.stem + suffix
                module = (Path(out) / PACKAGE / name).read_text()
                # They lie beside each other here.
                module = module.replace(
                    "from attention.v1 import", "from attention_client import"
                )
                (package / name).write_text(module)


class BuildPy(build_py):
    def run(self) -> None:
        super().run()
        root = HERE / "src" if self.editable_mode else Path(self.build_lib)
        generate(root / "attention_client")
        if NATIVE:
            shutil.copy(NATIVE, root / "attention_client")


class PythonOrNative(Distribution):
    def has_ext_modules(self) -> bool:
        return bool(NATIVE)


class Sdist(sdist):
    def make_release_tree(self, base_dir: str, files: list) -> None:
        super().make_release_tree(base_dir, files)
        for proto in PROTOS:
            target = Path(base_dir) / "proto" / proto
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(proto_root() / proto, target)


setup(
    version=version(),
    distclass=PythonOrNative,
    cmdclass={"build_py": BuildPy, "sdist": Sdist},
)
