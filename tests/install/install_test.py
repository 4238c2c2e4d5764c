"""Installs the project into an empty folder, builds another project against
what is there, and runs that against the installed server.

usage: install_test.py CMAKE BUILD_DIR CONSUMER_DIR [configure arguments]
"""

import pathlib
import subprocess
import sys
import tempfile

sys.path.append(str(pathlib.Path(__file__).parent.parent / "e2e"))
from server_process import ServerProcess  # pylint: disable=wrong-import-position


def run(*command):
    """Standard output of a command that must work."""
    print("+", *command, flush=True)
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    print(done.stdout, flush=True)
    if done.returncode != 0:
        sys.exit(f"{command[0]} ended with {done.returncode}")
    return done.stdout


def check_headers(include):
    """What is installed must not lead back into the source tree."""
    headers = sorted(path.name for path in (include / "attention").iterdir())
    print("headers:", *headers)
    for header in include.rglob("*.h"):
        for line in header.read_text().splitlines():
            if line.startswith(
                ('#include "kernel/', '#include "client/', '#include "server/')
            ):
                sys.exit(f"{header}: {line}")


def check_completion(share):
    """Scripts that their shells take, where these look for them."""
    for program in ("attention_client", "attention_server"):
        bash = share / "bash-completion/completions" / program
        found = run("bash", "-c", f". '{bash}'; complete -p {program}")
        if found != f"complete -F _{program} {program}\n":
            sys.exit(f"{bash} does not complete {program}")
        zsh = share / "zsh/site-functions" / f"_{program}"
        if not zsh.read_text().startswith(f"#compdef {program}\n"):
            sys.exit(f"{zsh} does not complete {program}")


def main(cmake, build, consumer, *configure):
    with tempfile.TemporaryDirectory() as folder:
        prefix = pathlib.Path(folder) / "prefix"
        consumer_build = pathlib.Path(folder) / "build"
        run(cmake, "--install", build, "--prefix", str(prefix))
        check_headers(prefix / "include")
        check_completion(prefix / "share")
        protos = prefix / "share" / "attention" / "proto"
        if not (protos / "attention" / "v1" / "attention.proto").is_file():
            sys.exit(f"{protos} does not hold the .proto files")

        run(
            cmake,
            "-S",
            consumer,
            "-B",
            str(consumer_build),
            f"-DCMAKE_PREFIX_PATH={prefix}",
            *configure,
        )
        run(cmake, "--build", str(consumer_build))
        with ServerProcess(str(prefix / "bin" / "attention_server")) as server:
            answer = run(str(consumer_build / "consumer"), server.address)
            if not answer.startswith("0.669762 0.330238 from version "):
                sys.exit("wrong answer")
            run(
                str(prefix / "bin" / "attention_client"),
                "health",
                f"--server={server.address}",
            )


if __name__ == "__main__":
    main(*sys.argv[1:])
