"""The client in Java: its own tests, its package as it would be published, and
what its README shows."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from polyglot.places import CLIENTS, REPOSITORY

JAVA = CLIENTS / "java"
README = JAVA / "README.md"
VERSION = re.search(
    r"project\(attention_service VERSION ([0-9.]+)",
    (REPOSITORY / "CMakeLists.txt").read_text(),
)[1]
GROUP = "io/github/attention-service"
# The plugin that copies dependencies, as in examples/pom.xml.
DEPENDENCIES = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1"

pytestmark = pytest.mark.skipif(
    shutil.which("mvn") is None, reason="there is no Maven"
)


def share(source, target, but):
    """Links to all of `source` but the folder `but`, so that what is installed
    there is seen by nobody else."""
    target.mkdir(parents=True, exist_ok=True)
    name, _, rest = but.partition("/")
    for entry in source.iterdir() if source.exists() else ():
        if entry.name != name:
            (target / entry.name).symlink_to(entry)
    if rest:
        (source / name).mkdir(parents=True, exist_ok=True)
        share(source / name, target / name, rest)


@pytest.fixture(scope="session")
def repository(tmp_path_factory):
    """A local Maven repository of its own, with what is downloaded already."""
    kept = Path(os.environ.get("MAVEN_REPOSITORY", "~/.m2/repository"))
    folder = tmp_path_factory.mktemp("java") / "repository"
    share(kept.expanduser(), folder, GROUP)
    return folder


@pytest.fixture(scope="session")
def maven(run, repository):
    def maven(*arguments, **options):
        return run(
            "mvn",
            "-B",
            "-q",
            f"-Dmaven.repo.local={repository}",
            *arguments,
            **options,
        )

    return maven


@pytest.fixture(scope="session")
def installed(maven, repository):
    """Checks the format, compiles without a warning, runs the tests, and makes
    and installs the jars; the javadoc without a warning, too."""
    maven("spotless:check", "install", cwd=JAVA)
    return repository / GROUP / "attention-client" / VERSION


@pytest.fixture(scope="session")
def examples(maven, installed):
    maven("process-classes", cwd=JAVA / "examples")
    return {
        "ATTENTION_EXAMPLES_BUILT": "1",
    }


def test_own_tests(installed):
    reports = list((JAVA / "target/surefire-reports").glob("TEST-*.xml"))
    counts = [
        re.search(
            r'<testsuite [^>]*tests="(\d+)" errors="0" skipped="(\d+)" failures="0"',
            report.read_text(),
        )
        for report in reports
    ]
    assert len(counts) >= 10
    assert sum(int(count[1]) for count in counts) > 150
    assert sum(int(count[2]) for count in counts) == 0


def test_jars(installed):
    name = f"attention-client-{VERSION}"
    for suffix in (".jar", "-sources.jar", "-javadoc.jar", ".pom"):
        assert (installed / f"{name}{suffix}").stat().st_size > 0
    listed = subprocess.run(
        ["jar", "tf", installed / f"{name}.jar"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    assert "META-INF/LICENSE" in listed
    outside = [
        entry
        for entry in listed
        if entry.endswith(".class")
        and not entry.startswith("io/github/attentionservice/")
    ]
    assert outside == []


def test_metadata():
    """What Maven Central asks for."""
    pom = (JAVA / "pom.xml").read_text()
    assert f"<version>{VERSION}</version>" in pom
    for element in (
        "name",
        "description",
        "url",
        "licenses",
        "developers",
        "scm",
    ):
        assert f"<{element}>" in pom
    assert f"<version>{VERSION}</version>" in README.read_text()


def test_random_vectors(maven, installed, random_vectors):
    maven(
        "test",
        "-Dtest=AttentionVectorsTest#digests,SessionVectorsTest#scripts",
        "-Dsurefire.reportNameSuffix=random",
        cwd=JAVA,
        **random_vectors,
    )
    tests = 0
    for report in (JAVA / "target/surefire-reports").glob("TEST-*-random.xml"):
        tests += int(re.search(r' tests="(\d+)"', report.read_text())[1])
        report.unlink()
    # Scripts run twice: by the methods of sessions and as batches of one.
    assert tests == 210


def test_scenario(examples, run, scenario):
    flags, expected = scenario
    assert run(JAVA / "examples/scenario", *flags, **examples) == expected


def test_bench(examples, run, server):
    flags = (f"--server={server.address}", "--seconds=3")
    lines = run(JAVA / "examples/bench", *flags, **examples).splitlines()
    assert len(lines) == 6
    assert all('"p50_ms":' in line for line in lines)


POM = """\
<project>
  <modelVersion>4.0.0</modelVersion>
  <groupId>trial</groupId>
  <artifactId>trial</artifactId>
  <version>1</version>
  <properties>
    <maven.compiler.release>17</maven.compiler.release>
    <project.build.sourceEncoding>UTF-8</project.build.sourceEncoding>
  </properties>
  <dependencies>
DEPENDENCY
  </dependencies>
  <build>
    <plugins>
      <plugin>
        <groupId>org.apache.maven.plugins</groupId>
        <artifactId>maven-compiler-plugin</artifactId>
        <version>3.15.0</version>
      </plugin>
      <plugin>
        <groupId>org.apache.maven.plugins</groupId>
        <artifactId>maven-resources-plugin</artifactId>
        <version>3.5.0</version>
      </plugin>
    </plugins>
  </build>
</project>
"""

PROGRAM = """\
import io.github.attentionservice.*;
import java.nio.file.Path;
import java.time.Duration;
import java.util.concurrent.*;
IMPORTS

public class Trial {
  public static void main(String[] arguments) {
    first();
    try (AttentionClient client = AttentionClient.connect("127.0.0.1:50051")) {
      Tensor eye = Tensor.of(new float[] {1, 0, 0, 1}, 2, 2);
CALLS
    }
  }
METHODS
}
"""


def blocks(language):
    return re.findall(
        rf"^```{language}\n(.*?)^```",
        README.read_text(),
        re.MULTILINE | re.DOTALL,
    )


def program():
    first, *others = blocks("java")
    imports = "".join(re.findall(r"^import .*\n", first, re.MULTILINE))
    methods = ["static void first() {\n" + first.replace(imports, "") + "}\n"]
    calls = []
    for number, block in enumerate(others):
        calls.append(f"readme{number}(client, eye);")
        methods.append(
            f"static void readme{number}(AttentionClient client, Tensor eye) {{\n"
            f"{block}}}\n"
        )
    return (
        PROGRAM.replace("IMPORTS", imports)
        .replace("CALLS", "\n".join(calls))
        .replace("METHODS", "\n".join(methods))
    )


def test_readme_in_an_empty_project(installed, maven, run, server, tmp_path):
    """A project that knows the package alone, by the lines of the README."""
    (dependency,) = blocks("xml")
    (tmp_path / "pom.xml").write_text(POM.replace("DEPENDENCY", dependency))
    source = tmp_path / "src/main/java/Trial.java"
    source.parent.mkdir(parents=True)
    source.write_text(program().replace("127.0.0.1:50051", server.address))
    (tmp_path / "token").write_text("a-token\n")
    run(
        "openssl",
        *("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"),
        *("-subj", "/CN=here", "-keyout", "client.key", "-out", "client.pem"),
        cwd=tmp_path,
    )
    shutil.copy(tmp_path / "client.pem", tmp_path / "ca.pem")
    maven(
        "compile",
        f"{DEPENDENCIES}:copy-dependencies",
        "-DoutputDirectory=target/lib",
        cwd=tmp_path,
    )
    printed = run(
        "java", "-cp", "target/classes:target/lib/*", "Trial", cwd=tmp_path
    )
    expected = [
        line
        for block in blocks("java")
        for line in re.findall(r"^// (.*\n)", block, re.MULTILINE)
    ]
    assert len(expected) == 6
    assert printed == "".join(expected)
