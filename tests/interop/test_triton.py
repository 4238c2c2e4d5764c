"""Stock Triton clients against the server: tritonclient and perf_analyzer, each in
a process of its own, for they want other packages than the tests have."""

import json
import platform
import re

import numpy as np
import pytest

from attention_client import Client
from interop.places import REPOSITORY, TOOLS

PYTHON = TOOLS / "triton/bin/python"
DOCUMENT = (REPOSITORY / "docs/kserve.md").read_text()
WAYS = ["sync", "aio", "aio_stream", "stream"]
HTTP_WAYS = ["http", "http_numbers", "http_aio"]


def block(language):
    """The only block of code in that language."""
    (found,) = re.findall(rf"```{language}\n(.*?)```", DOCUMENT, re.DOTALL)
    return found


def cases():
    """Name, inputs, datatypes of those that are not FP32, parameters as
    tritonclient sends them, and as arguments of Client.compute."""
    rng = np.random.default_rng(5)

    def normal(*shape, dtype=np.float32):
        return rng.standard_normal(shape).astype(dtype)

    yield (
        "grouped",
        {
            "query": normal(2, 8, 5, 64),
            "key": normal(2, 2, 70, 64),
            "value": normal(2, 2, 70, 32),
        },
        {},
        {"causal": "bottom_right", "scale": 0.2, "window.left": 30},
        {"causal": "bottom_right", "scale": 0.2, "window": (30, None)},
    )
    yield (
        "half",
        {
            "query": normal(1, 4, 3, 16, dtype=np.float16),
            "key": normal(1, 4, 9, 16, dtype=np.float16),
            "value": normal(1, 4, 9, 16, dtype=np.float16),
            "mask": rng.random((3, 9)) < 0.7,
        },
        {"query": "FP16", "key": "FP16", "value": "FP16", "mask": "BOOL"},
        {"softcap": "2.5", "sinks": "0.5,1,-1,0"},
        {"softcap": 2.5, "sinks": [0.5, 1, -1, 0]},
    )
    yield (
        "double",
        {
            "query": normal(1, 2, 3, 8, dtype=np.float64),
            "key": normal(1, 2, 4, 8, dtype=np.float64),
            "value": normal(1, 2, 4, 8, dtype=np.float64),
            "past_key": normal(1, 2, 6, 8, dtype=np.float64),
            "past_value": normal(1, 2, 6, 8, dtype=np.float64),
            "mask": normal(3, 10),
        },
        dict.fromkeys(
            ["query", "key", "value", "past_key", "past_value"], "FP64"
        ),
        {"causal": 1},
        {"causal": "top_left"},
    )
    yield (
        "large",
        {
            "query": normal(1, 8, 64, 128),
            "key": normal(1, 8, 3000, 128),
            "value": normal(1, 8, 3000, 128),
        },
        {},
        {},
        {},
    )


@pytest.fixture(scope="module")
def answers(address, http_address, tool, tmp_path_factory):
    folder = tmp_path_factory.mktemp("triton")
    for name, inputs, datatypes, parameters, _ in cases():
        np.savez(folder / f"{name}.npz", **inputs)
        (folder / f"{name}.json").write_text(
            json.dumps(
                {
                    "datatypes": datatypes,
                    "parameters": parameters,
                    "outputs": ["output", "log_sum_exp"],
                }
            )
        )
    script = REPOSITORY / "tests/interop/triton_client.py"
    tool(PYTHON, script, address, http_address, folder)
    return dict(np.load(folder / "answers.npz"))


@pytest.mark.parametrize("case", list(cases()), ids=lambda case: case[0])
def test_tritonclient_gets_the_same_bits(address, answers, case):
    name, inputs, _, _, arguments = case
    with Client(address) as client:
        wanted = client.compute(**inputs, **arguments, return_log_sum_exp=True)
    # JSON has no numbers for halves, and a body over HTTP is limited.
    http_ways = {"half": ["http", "http_aio"], "large": []}.get(name, HTTP_WAYS)
    for way in [*WAYS, *http_ways, "memory", "http_memory"]:
        for output in ("output", "log_sum_exp"):
            got = answers[f"{way}/{name}/{output}"]
            array = getattr(wanted, output)
            assert got.dtype == array.dtype
            assert got.shape == array.shape
            assert got.tobytes() == array.tobytes(), (way, output)


def test_the_example_of_the_page(address, tool, tmp_path):
    example = block("python").replace("127.0.0.1:50051", address)
    script = tmp_path / "example.py"
    script.write_text(example + "print(output.shape, log_sum_exp.shape)\n")
    said = tool(PYTHON, script).stdout
    assert said == "(1, 8, 4, 64) (1, 8, 4)\n"


@pytest.mark.skipif(
    platform.machine() != "x86_64", reason="perf_analyzer is for x86-64"
)
@pytest.mark.parametrize(
    "mode", [[], ["--streaming", "--async"], ["-i", "http"]]
)
def test_perf_analyzer(address, http_address, tool, tmp_path, mode):
    libraries = TOOLS / "wheels/nvidia/cuda_runtime/lib"
    (tmp_path / "data.json").write_text(block("json"))
    program, *arguments = block("sh").split()
    served = http_address if "http" in mode else address
    command = [
        served if word == "127.0.0.1:50051" else word for word in arguments
    ]
    command[command.index("1:4")] = "2"
    said = tool(
        "env",
        f"LD_LIBRARY_PATH={libraries}",
        program,
        *command,
        *mode,
        "--measurement-mode=count_windows",
        "--measurement-request-count=200",
        # However unsteady the machine is.
        "--stability-percentage=999",
        cwd=tmp_path,
    ).stdout
    # Its own count of what the server says that it did.
    (count,) = re.findall(r"Successful request count: (\d+)", said)
    assert int(count) >= 200, said
    assert "Request concurrency: 2" in said
