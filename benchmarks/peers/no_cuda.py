"""Lets PyTorch load without CUDA: python no_cuda.py SITE_PACKAGES

PyTorch for Linux, as PyPI has it, is linked against CUDA's libraries:
gigabytes that a CPU has no use for. This puts libraries of their names beside
PyTorch's own whose every function returns 100, CUDA's "no device".
"""

import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

VENDOR = r"(?:cu|nccl|nv)"
NO_DEVICE = "int no_device(void) { return 100; }\n"
ALIAS = 'int {}(void) __attribute__((alias("no_device")));\n'


def output_of(*command):
    return subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def wanted(folder):
    """Versions wanted of each library, and names wanted of each version.

    The version of a name that has none is "".
    """
    versions = defaultdict(set)
    names = defaultdict(set)
    for library in folder.glob("*.so"):
        headers = output_of("objdump", "-p", library)
        for name in re.findall(rf"NEEDED +(lib{VENDOR}\S+)", headers):
            versions.setdefault(name, set())
        references = rf"required from (lib{VENDOR}\S+):\n((?: +0x.*\n)+)"
        for name, lines in re.findall(references, headers):
            versions[name] |= {line.split()[-1] for line in lines.splitlines()}
        symbols = output_of("nm", "-D", "--undefined-only", library)
        for name, version in re.findall(r" U (\w+)(?:@(\S+))?", symbols):
            if version or re.match(VENDOR, name):
                names[version].add(name)
    return versions, names


def build(path, versions, names):
    """A library that defines `names`, which maps versions to sets."""
    source = NO_DEVICE + "".join(
        ALIAS.format(name)
        for version in versions or [""]
        for name in sorted(names[version])
    )
    script = "".join(
        f"{version} {{ {' '.join(f'{name};' for name in names[version])} }};\n"
        for version in versions
    )
    with tempfile.TemporaryDirectory() as folder:
        source_file, script_file = Path(folder, "a.c"), Path(folder, "a.map")
        source_file.write_text(source)
        script_file.write_text(script or "{ *; };")
        output_of(
            *("gcc", "-w", "-shared", "-fPIC", source_file, "-o", path),
            f"-Wl,-soname,{path.name},--version-script={script_file}",
        )


def main(site_packages):
    folder = Path(site_packages, "torch", "lib")
    versions, names = wanted(folder)
    for library in versions:
        if not (folder / library).exists():
            build(folder / library, sorted(versions[library]), names)


if __name__ == "__main__":
    main(sys.argv[1])
