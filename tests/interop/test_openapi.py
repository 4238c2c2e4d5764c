"""The calls over HTTP are those that docs/openapi.json describes: schemathesis makes
some thousand of them, right and wrong ones."""

from interop.places import REPOSITORY, TOOLS


def test_the_description_holds(http_address, tool, tmp_path):
    said = tool(
        TOOLS / "schema/bin/schemathesis",
        "run",
        REPOSITORY / "docs/openapi.json",
        f"--url=http://{http_address}",
        "--checks=all",
        # Tensors have to fit each other, which no schema says.
        "--exclude-checks=positive_data_acceptance",
        "--max-examples=30",
        "--seed=1",
        cwd=tmp_path,
    ).stdout
    assert "Selected: 10/10" in said
