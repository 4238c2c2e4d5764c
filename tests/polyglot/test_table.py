"""client/README.md shows the same call in every language; here each is run."""

import re

import pytest

from polyglot.places import CLIENTS, REPOSITORY

README = (CLIENTS / "README.md").read_text()
ADDRESS = "127.0.0.1:50051"
ANSWER = [0.669762, 0.330238, 0.330238, 0.669762]


def columns(line):
    return [cell.strip() for cell in line.strip()[1:-1].split("|")]


def cells(language):
    """The code of each row of the table that has a column of that language."""
    lines = README.splitlines()
    (head,) = [i for i, line in enumerate(lines) if f"| {language} |" in line]
    column = columns(lines[head]).index(language)
    found = {}
    for line in lines[head + 2 :]:
        if not line.startswith("|"):
            return found
        row = columns(line)
        if code := re.fullmatch("`([^`]*)`", row[column]):
            found[row[0]] = code[1]
    return found


def check(printed):
    numbers = [float(number) for number in re.findall(r"\d\.\d+", printed)]
    assert numbers == pytest.approx(ANSWER, abs=1e-6), printed


def test_go(run, server, tmp_path):
    code = cells("Go")
    toolchain = run(CLIENTS / "go/toolchain.sh").strip()
    folder = CLIENTS / "go"
    program = tmp_path / "main.go"
    program.write_text(
        f"""package main

import (
	"context"
	"fmt"
	"log"

	attention "github.com/attention-service/attention-service/client/go"
)

func main() {{
	ctx := context.Background()
	{code["connect"].replace(ADDRESS, server.address)}
	if err != nil {{
		log.Fatal(err)
	}}
	defer client.Close()
	{code["tensors"]}
	{code["compute"]}
	if err != nil {{
		log.Fatal(err)
	}}
	fmt.Println({code["the answer"]})
}}
"""
    )
    check(run(f"{toolchain}/go", "run", program, cwd=folder))


def test_typescript(run, server, tmp_path):
    code = cells("TypeScript")
    folder = CLIENTS / "typescript"
    if not (folder / "node_modules").is_dir():
        run("npm", "ci", "--silent", "--no-audit", "--no-fund", cwd=folder)
    run("npm", "run", "--silent", "build", cwd=folder)
    program = tmp_path / "main.mjs"
    program.write_text(
        f"""import {{ AttentionClient, tensor }} from "{folder}/dist/node/index.js";
{code["connect"].replace(ADDRESS, server.address)}
{code["tensors"]}
{code["compute"]}
console.log([...{code["the answer"]}].join(" "));
await client.close();
"""
    )
    check(run("node", program))


def test_rust(run, server):
    code = cells("Rust")
    name = "readme_table"
    # Among the crate's examples, so that it finds the crate and what was built.
    program = CLIENTS / f"rust/examples/{name}.rs"
    program.write_text(
        f"""use attention_client::{{Client, ComputeRequest, Tensor}};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {{
    {code["connect"].replace(ADDRESS, server.address)}
    {code["tensors"]}
    {code["compute"]}
    println!("{{:?}}", {code["the answer"]});
    Ok(())
}}
"""
    )
    try:
        check(
            run(
                "cargo", "run", "-q", "--locked",
            "--all-features", "--example", name,
                cwd=CLIENTS / "rust",
            )
        )  # fmt: skip
    finally:
        program.unlink()


def test_java(run, server, tmp_path):
    code = cells("Java")
    program = tmp_path / "Main.java"
    program.write_text(
        f"""import io.github.attentionservice.*;

public class Main {{
  public static void main(String[] arguments) throws Exception {{
    {code["connect"].replace(ADDRESS, server.address)}
    {code["tensors"]}
    {code["compute"]}
    System.out.println(java.util.Arrays.toString({code["the answer"]}));
    client.close();
  }}
}}
"""
    )
    folder = CLIENTS / "java"
    path = tmp_path / "path"
    run(
        "mvn", "-q", "-B", "compile", "dependency:build-classpath",
        f"-Dmdep.outputFile={path}", cwd=folder,
    )  # fmt: skip
    classes = f"{folder}/target/classes:{path.read_text()}"
    check(run("java", "-cp", classes, program, cwd=REPOSITORY))
