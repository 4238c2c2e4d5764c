"""Runs the built server and client programs as a user would.

usage: client_program_test.py SERVER CLIENT [unittest arguments]
"""

import json
import math
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import tempfile
import unittest

from server_process import ServerProcess
from tensor_files import (
    read_npy,
    read_safetensors,
    write_npy,
    write_safetensors,
)

SERVER, CLIENT = "", ""

IDENTITY = [
    "--query=[[1,0],[0,1]]",
    "--key=[[1,0],[0,1]]",
    "--value=[[1,0],[0,1]]",
]

IDENTITY_EXPLAINED = """\
Batch 0, head 0. Queries: 2. Keys: 2, of size 2. Values of size 2.

1. Similarity: the dot product of each query with each key
              key 0     key 1
  query 0  1.000000  0.000000
  query 1  0.000000  1.000000

2. Scaling: times 0.707107 = 1 / sqrt(2)
              key 0     key 1
  query 0  0.707107  0.000000
  query 1  0.000000  0.707107

3. Softmax: each query's scores become weights
              key 0     key 1
  query 0  0.669762  0.330238
  query 1  0.330238  0.669762

   The same, shaded by the share of the row's largest
  query 0  │██▒▒│
  query 1  │▒▒██│

4. Weighted sum: the values, by those weights
           column 0  column 1
  query 0  0.669762  0.330238
  query 1  0.330238  0.669762
"""


def flat(nested):
    if isinstance(nested, list):
        return [x for item in nested for x in flat(item)]
    return [nested]


def attention(query, key, value):
    """One head, in double, by the textbook; rows as lists."""
    scale = 1 / math.sqrt(len(query[0]))
    output = []
    for q in query:
        scores = [scale * sum(a * b for a, b in zip(q, k)) for k in key]
        top = max(scores)
        weights = [math.exp(s - top) for s in scores]
        total = sum(weights)
        output.append(
            [
                sum(w / total * v[column] for w, v in zip(weights, value))
                for column in range(len(value[0]))
            ]
        )
    return output


class ProgramTest(unittest.TestCase):
    """Runs the client, in a folder of its own."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def run_client(self, *arguments, stdin=None, **environment):
        return subprocess.run(
            [CLIENT, *arguments],
            cwd=self.folder,
            input=stdin,
            env={**os.environ, "LC_ALL": "C.UTF-8", **environment},
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=60,
            check=False,
        )

    def assert_close(self, values, wanted, within=6e-7):
        """By default as far apart as rounding to six decimals, of `wanted`, and
        to float32, of `values`, can bring them."""
        self.assertEqual(len(values), len(wanted))
        for value, want in zip(values, wanted):
            self.assertAlmostEqual(value, want, delta=within)

    def assert_fails(self, run, code, text):
        """One line on standard error that holds `text`; nothing else said."""
        self.assertEqual(run.returncode, code, run.stderr)
        self.assertEqual(run.stdout, "")
        self.assertRegex(run.stderr, r"\Aattention_client: [^\n]*\n\Z")
        self.assertIn(text, run.stderr)


class ServedTest(ProgramTest):
    """With one server for all tests of the class."""

    @classmethod
    def setUpClass(cls):
        cls.server = ServerProcess(SERVER)
        cls.addClassCleanup(cls.server.__exit__)

    def call(self, command, *arguments, **environment):
        return self.run_client(
            command,
            f"--server={self.server.address}",
            *arguments,
            **environment,
        )

    def compute(self, *arguments):
        """Standard output of a call that must work."""
        run = self.call("compute", *arguments)
        self.assertEqual(run.returncode, 0, run.stderr)
        self.assertEqual(run.stderr, "")
        return run.stdout


class ComputeTest(ServedTest):
    def test_identity(self):
        output = json.loads(self.compute(*IDENTITY))
        self.assertEqual([len(row) for row in output], [2, 2])
        self.assert_close(
            flat(output), [0.669762, 0.330238, 0.330238, 0.669762]
        )

    def test_two_keys(self):
        arguments = [
            "--query=[[1,0]]",
            "--key=[[0.5,0.5],[0.3,0.7]]",
            "--value=[[1,0],[0.5,0.5]]",
        ]
        output = json.loads(self.compute(*arguments))
        self.assert_close(flat(output), [0.767648, 0.232352])
        labelled = self.compute(*arguments, "--scores=weights")
        name, weights = labelled.splitlines()[2:]
        self.assertEqual(name, "scores:")
        self.assert_close(flat(json.loads(weights)), [0.535297, 0.464703])

    def test_explain(self):
        self.assertEqual(
            self.compute(*IDENTITY, "--explain"), IDENTITY_EXPLAINED
        )

    def test_explain_where_the_terminal_has_no_unicode(self):
        run = self.call("compute", *IDENTITY, "--explain", LC_ALL="C")
        self.assertIn("  query 0  |##++|\n", run.stdout)
        self.assertTrue(run.stdout.isascii())

    def test_explain_shows_masks(self):
        text = self.compute(
            *IDENTITY, "--explain", "--causal=top-left", "--softcap=1"
        )
        self.assertIn(
            "   Soft cap: 1 * tanh(score / 1)\n"
            "              key 0     key 1\n"
            "  query 0  0.608859  0.000000\n",
            text,
        )
        self.assertIn(
            "   Bias and masks: -inf hides a key from a query\n"
            "              key 0     key 1\n"
            "  query 0  0.608859      -inf\n",
            text,
        )
        self.assertIn("  query 0  1.000000  0.000000\n", text)

    def test_masks_and_sinks(self):
        output = self.compute(*IDENTITY, "--mask=[[true,false],[false,false]]")
        self.assertEqual(output, "[[1, 0],\n [0, 0]]\n")
        output = self.compute(*IDENTITY, "--mask=[[0,-inf],[-inf,0]]")
        self.assertEqual(output, "[[1, 0],\n [0, 1]]\n")
        output = json.loads(
            self.compute(
                "--query=[[0]]", "--key=[[0]]", "--value=[[1]]", "--sinks=0"
            )
        )
        self.assert_close(flat(output), [0.5])

    def test_past_and_present(self):
        text = self.compute(
            "--query=[[0,0]]",
            "--key=[[5,6]]",
            "--value=[[3]]",
            "--past-key=[[[[1,2],[3,4]]]]",
            "--past-value=[[[[1],[2]]]]",
            "--present",
            "--log-sum-exp",
        )
        self.assertEqual(
            text,
            "output:\n[[2]]\n"
            "log_sum_exp:\n[1.0986123]\n"
            "present_key:\n[[[[1, 2],\n   [3, 4],\n   [5, 6]]]]\n"
            "present_value:\n[[[[1],\n   [2],\n   [3]]]]\n",
        )

    def test_npy(self):
        numbers = random.Random(1)
        tensors = {
            name: [
                [numbers.gauss(0, 1) for _ in range(columns)]
                for _ in range(rows)
            ]
            for name, rows, columns in [("q", 5, 8), ("k", 7, 8), ("v", 7, 3)]
        }
        for name, rows in tensors.items():
            write_npy(
                self.folder / f"{name}.npy",
                "float32",
                [len(rows), len(rows[0])],
                flat(rows),
            )
        text = self.compute(
            "--query=q.npy", "--key=k.npy", "--value=v.npy", "--output=out.npy"
        )
        self.assertEqual(text, "")
        kind, shape, values = read_npy(self.folder / "out.npy")
        self.assertEqual((kind, shape), ("float32", [5, 3]))
        self.assert_close(
            values,
            flat(attention(tensors["q"], tensors["k"], tensors["v"])),
            within=3e-6,
        )

    def test_large_requests_are_streamed(self):
        """The same bits as in one message."""
        length = 1 << 13
        write_npy(self.folder / "q.npy", "float32", [3, 128], [0.25] * 384)
        for name, step in {"k": 7, "v": 11}.items():
            values = [(i * step % 101 - 50) / 50 for i in range(101)]
            values = values * (length * 128 // 101 + 1)
            write_npy(
                self.folder / f"{name}.npy",
                "float32",
                [length, 128],
                values[: length * 128],
            )
        inputs = ["--query=q.npy", "--key=k.npy", "--value=v.npy"]
        self.compute(*inputs, "--output=streamed.npy")
        # Whoever asks for scores gets one message.
        self.compute(
            *inputs,
            "--output=whole.npy",
            "--scores=raw",
            "--scores-output=s.npy",
        )
        self.assertEqual(
            (self.folder / "streamed.npy").read_bytes(),
            (self.folder / "whole.npy").read_bytes(),
        )

    def test_safetensors(self):
        write_safetensors(
            self.folder / "in.safetensors",
            {
                "q": ("bfloat16", [1, 2], [0x3F80, 0]),
                "k": ("bfloat16", [2, 2], [0x3F80, 0, 0, 0x3F80]),
                "v": ("float16", [2, 1], [1, 0]),
            },
        )
        self.compute(
            "--query=in.safetensors:q",
            "--key=in.safetensors:k",
            "--value=in.safetensors:v",
            "--log-sum-exp",
            "--output=out.safetensors",
            "--log-sum-exp-output=out.safetensors:lse",
        )
        tensors = read_safetensors(self.folder / "out.safetensors")
        # 0.669762 is 0x3f2b in bfloat16.
        self.assertEqual(tensors["output"], ("bfloat16", [1, 1], [0x3F2B]))
        kind, shape, values = tensors["lse"]
        self.assertEqual((kind, shape), ("float32", [1]))
        self.assert_close(values, [math.log(math.exp(math.sqrt(0.5)) + 1)])

    def test_literal_types(self):
        output = json.loads(self.compute(*IDENTITY, "--type=float64"))
        self.assert_close(
            flat(output),
            flat(
                attention([[1, 0], [0, 1]], [[1, 0], [0, 1]], [[1, 0], [0, 1]])
            ),
            within=1e-15,
        )

    def test_literals_on_standard_input(self):
        # As numpy and torch print the identity.
        for text in [
            "[[1. 0.]\n [0. 1.]]\n",
            "tensor([[1., 0.],\n        [0., 1.]])\n",
        ]:
            run = self.call(
                "compute", "--query", "-", *IDENTITY[1:], stdin=text
            )
            self.assertEqual(run.stderr, "")
            self.assertEqual(run.stdout, self.compute(*IDENTITY))

    def test_packed_heads(self):
        output = self.compute(
            "--query=[[[1,2,3,4]]]",
            "--key=[[[0,0]]]",
            "--value=[[[5,6]]]",
            "--query-heads=2",
            "--kv-heads=1",
        )
        self.assertEqual(output, "[[[5, 6, 5, 6]]]\n")

    def test_ragged(self):
        output = self.compute(
            "--layout=ragged",
            "--query=[[[1]],[[1]]]",
            "--key=[[[0]],[[0]],[[0]]]",
            "--value=[[[1]],[[3]],[[8]]]",
            "--query-starts=0,1,2",
            "--key-starts=0,2,3",
        )
        self.assertEqual(output, "[[[2]],\n [[8]]]\n")

    def test_what_the_server_refuses(self):
        self.assert_fails(
            self.call(
                "compute", "--query=[[1,0]]", "--key=[[1,0,0]]", "--value=[[1]]"
            ),
            2,
            "INVALID_ARGUMENT: key.shape: ",
        )
        self.assert_fails(
            self.call("compute", *IDENTITY, "--softcap=-1"),
            2,
            "INVALID_ARGUMENT: options.softcap: ",
        )
        self.assert_fails(
            self.call(
                "compute", *IDENTITY, "--type=bfloat16", "--mask=[[1,2,3]]"
            ),
            2,
            "INVALID_ARGUMENT: mask.shape: ",
        )

    def test_what_the_client_refuses(self):
        (self.folder / "bad.npy").write_bytes(b"\x93NUMPY\x01\x00")
        for arguments, text in [
            (
                ["--query=[[1,2],[3]]"],
                (
                    "--query: rows of different length: got 1 elements, wanted 2 at "
                    "[1]"
                ),
            ),
            (["--query=[[1,2"], "--query: not a literal"),
            (["--query=no.npy"], "--query: no.npy: no such file"),
            (["--query=bad.npy"], "--query: bad.npy: not a valid .npy"),
            (["--query=[[1]]", "--output=x.txt"], "--output: got 'x.txt'"),
            (["--query=[[1]]", "--causal=maybe"], "--causal: got 'maybe'"),
            (["--query=[[1]]", "--frobnicate"], "--frobnicate"),
            ([], "--query is required"),
        ]:
            with self.subTest(arguments):
                self.assert_fails(
                    self.call(
                        "compute", "--key=[[1]]", "--value=[[1]]", *arguments
                    ),
                    1,
                    text,
                )

    def test_a_reader_that_has_seen_enough(self):
        # More than a pipe holds.
        write_npy(self.folder / "x.npy", "float32", [40000, 1], [0.5] * 40000)
        for ignored, code, error in (
            # As `| head` gives it, and as some parents leave it behind.
            (False, -signal.SIGPIPE, ""),
            (True, 1, "attention_client: cannot write to standard output\n"),
        ):
            with self.subTest(ignored=ignored):
                client = subprocess.Popen(
                    [
                        *(["env", "--ignore-signal=PIPE"] if ignored else []),
                        CLIENT,
                        "compute",
                        f"--server={self.server.address}",
                        "--query=x.npy",
                        "--key=[[1]]",
                        "--value=[[1]]",
                    ],
                    cwd=self.folder,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
                self.assertEqual(client.stdout.read(1), "[")
                client.stdout.close()
                self.assertEqual(client.wait(timeout=60), code)
                self.assertEqual(client.stderr.read(), error)
                client.stderr.close()

    def test_an_interrupted_call_ends_its_line(self):
        # Far more than is sent before the line has been seen; without a block
        # on the disk.
        length = 1 << 24
        for name in "kv":
            file = self.folder / f"{name}.npy"
            write_npy(file, "float32", [length, 128], [])
            os.truncate(file, file.stat().st_size + length * 128 * 4)
        write_npy(self.folder / "q.npy", "float32", [1, 128], [0.5] * 128)
        for ending in (signal.SIGINT, signal.SIGTERM):
            with self.subTest(ending.name):
                terminal, its_end = os.openpty()
                self.addCleanup(os.close, terminal)
                client = subprocess.Popen(
                    [
                        CLIENT,
                        "compute",
                        f"--server={self.server.address}",
                        "--query=q.npy",
                        "--key=k.npy",
                        "--value=v.npy",
                    ],
                    cwd=self.folder,
                    stdout=subprocess.DEVNULL,
                    stderr=its_end,
                )
                os.close(its_end)
                shown = b""
                while b"GiB/s" not in shown:
                    shown += os.read(terminal, 1000)
                client.send_signal(ending)
                self.assertEqual(client.wait(timeout=60), -ending)
                try:
                    while more := os.read(terminal, 1000):
                        shown += more
                except OSError:
                    pass  # Nobody has the other end open any more.
                self.assertRegex(shown, rb"GiB/s\r\n\Z")

    def test_masks_of_integers_that_the_wire_lacks(self):
        identity = attention(
            [[1, 0], [0, 1]], [[1, 0], [0, 1]], [[1, 0], [0, 1]]
        )
        for kind, far in [("uint8", 255), ("int16", 30000)]:
            with self.subTest(kind):
                # Far above the other key, so that only one is seen.
                write_npy(
                    self.folder / "mask.npy", kind, [2, 2], [far, 0, 0, far]
                )
                output = self.compute(*IDENTITY, "--mask=mask.npy")
                self.assertEqual(output, "[[1, 0],\n [0, 1]]\n")
                # Numbers are added, also where they look like truth values;
                # then the program says so.
                write_npy(self.folder / "mask.npy", kind, [2, 2], [1, 1, 1, 1])
                run = self.call("compute", *IDENTITY, "--mask=mask.npy")
                self.assertIn("all 0 or 1, are added", run.stderr)
                self.assert_close(flat(json.loads(run.stdout)), flat(identity))

    def test_output_keeps_other_tensors(self):
        file = self.folder / "weights.safetensors"
        kept = ("float16", [2], [1.5, -2.0])
        write_safetensors(file, {"w": kept, "output": ("float32", [1], [9.0])})
        file.chmod(0o640)
        self.compute(*IDENTITY, "--output=weights.safetensors")
        tensors = read_safetensors(file)
        self.assertEqual(tensors["w"], kept)
        self.assertEqual(tensors["output"][:2], ("float32", [2, 2]))
        self.assertEqual(len(tensors), 2)
        self.assertEqual(file.stat().st_mode & 0o777, 0o640)

    def test_many_clients_add_to_one_file(self):
        clients = [
            subprocess.Popen(
                [
                    CLIENT,
                    "compute",
                    f"--server={self.server.address}",
                    *IDENTITY,
                    f"--output=out.safetensors:{i}",
                ],
                cwd=self.folder,
            )
            for i in range(8)
        ]
        for client in clients:
            self.assertEqual(client.wait(timeout=60), 0)
        tensors = read_safetensors(self.folder / "out.safetensors")
        self.assertEqual(sorted(tensors), [str(i) for i in range(8)])
        self.assertEqual(os.listdir(self.folder), ["out.safetensors"])

    def test_output_to_standard_output(self):
        (self.folder / "link.npy").symlink_to("/dev/stdout")
        run = subprocess.run(
            [
                CLIENT,
                "compute",
                f"--server={self.server.address}",
                *IDENTITY,
                "--output=link.npy",
            ],
            cwd=self.folder,
            stdout=subprocess.PIPE,
            timeout=60,
            check=True,
        )
        (self.folder / "copy.npy").write_bytes(run.stdout)
        self.assertEqual(
            read_npy(self.folder / "copy.npy")[:2], ("float32", [2, 2])
        )

    def test_what_cannot_be_written(self):
        """Is said before the call: nobody listens there."""
        (self.folder / "folder.npy").mkdir()
        (self.folder / "bad.safetensors").write_bytes(b"bad")
        for arguments, text in [
            (["--output=no/x.npy"], "--output: no/x.npy: no such folder: 'no'"),
            (["--output=folder.npy"], "folder.npy: is a folder, wanted a file"),
            (["--output=x.png"], "--output: got 'x.png', wanted file.npy"),
            (["--output=/proc/x.npy"], "cannot create a file in '/proc'"),
            (
                ["--output=bad.safetensors"],
                "bad.safetensors: cannot add to it: not a valid .safetensors",
            ),
            (
                ["--output=x.safetensors:__metadata__"],
                "--output: x.safetensors: got the name __metadata__",
            ),
            (
                [
                    "--output=x.npy",
                    "--log-sum-exp",
                    "--log-sum-exp-output=./x.npy",
                ],
                (
                    "--log-sum-exp-output: ./x.npy: --output would be written "
                    "to the same place"
                ),
            ),
        ]:
            with self.subTest(arguments):
                self.assert_fails(
                    self.run_client(
                        "compute",
                        f"--server=unix:{self.folder}/nobody",
                        *IDENTITY,
                        *arguments,
                    ),
                    1,
                    text,
                )
        self.assertEqual(
            sorted(os.listdir(self.folder)), ["bad.safetensors", "folder.npy"]
        )

    def test_a_failed_call_leaves_files_as_they_were(self):
        (self.folder / "x.npy").write_bytes(b"old")
        run = self.call(
            "compute", "--query=[[1,0]]", "--key=[[1]]", "--value=[[1]]",
            "--output=x.npy",
        )  # fmt: skip
        self.assert_fails(run, 2, "key.shape")
        self.assertEqual((self.folder / "x.npy").read_bytes(), b"old")
        self.assertEqual(os.listdir(self.folder), ["x.npy"])

    def test_no_such_head(self):
        self.assert_fails(
            self.call("compute", *IDENTITY, "--explain", "--head=1"),
            1,
            "--head: got 1, wanted 0 to 0",
        )

    def test_time_is_up(self):
        # Whoever listens here takes the connection and never says a word.
        with socket.create_server(("127.0.0.1", 0)) as silent:
            port = silent.getsockname()[1]
            self.assert_fails(
                self.run_client(
                    "compute",
                    f"--server=127.0.0.1:{port}",
                    *IDENTITY,
                    "--timeout=200ms",
                ),
                3,
                "DEADLINE_EXCEEDED",
            )


class HealthAndInfoTest(ServedTest):
    def test_health(self):
        for service in ["", "attention.v1.AttentionService"]:
            run = self.call("health", f"--service={service}")
            self.assertEqual(
                (run.returncode, run.stdout, run.stderr), (0, "SERVING\n", "")
            )

    def test_proxies_are_not_asked_for_this_machine(self):
        with socket.socket() as refusing:
            refusing.bind(("127.0.0.1", 0))
            proxy = f"127.0.0.1:{refusing.getsockname()[1]}"
            variables = {
                name: f"http://user:secret@{proxy}"
                for name in ("grpc_proxy", "https_proxy", "http_proxy")
            }
            port = self.server.address.rpartition(":")[2]
            for host in ["127.0.0.1", "localhost", "dns:///localhost"]:
                run = self.run_client(
                    "health", f"--server={host}:{port}", **variables
                )
                self.assertEqual(run.stdout, "SERVING\n", run.stderr)
            run = self.call(
                "bench", "--warmup=0", "--duration=100ms", **variables
            )
            self.assertEqual(run.returncode, 0, run.stderr)
            # Reserved for no name: the proxy is asked, and refuses.
            for command in [
                ["health"],
                ["compute", *IDENTITY],
                ["bench", "--timeout=200ms"],
            ]:
                run = self.run_client(
                    *command, "--server=server.invalid:50051", **variables
                )
                self.assert_fails(
                    run, 3, f"through the proxy of grpc_proxy={proxy}:"
                )
                self.assertNotIn("secret", run.stderr)

    def test_unknown_service(self):
        self.assert_fails(
            self.call("health", "--service=no.Such"), 2, "NOT_FOUND"
        )

    def test_info(self):
        run = self.call("info")
        self.assertEqual(run.returncode, 0, run.stderr)
        lines = dict(line.split("  ", 1) for line in run.stdout.splitlines())
        self.assertEqual(
            lines["types"].split(),
            ["FLOAT32", "FLOAT16", "BFLOAT16", "FLOAT64"],
        )
        self.assertRegex(lines["version"], r"^ *\d+\.\d+\.\d+")
        self.assertGreater(int(lines["threads"]), 0)
        self.assertEqual(int(lines["keys a block"]), 256)
        self.assertGreater(int(lines["max request bytes"]), 0)


class BenchTest(ServedTest):
    def bench(self, *arguments):
        """The JSON of a short measurement, which must work."""
        run = self.call(
            "bench",
            "--warmup=100ms",
            "--duration=500ms",
            "--json=-",
            *arguments,
        )
        self.assertEqual(run.returncode, 0, run.stderr)
        self.assertEqual(run.stderr, "")
        return json.loads(run.stdout)

    def test_closed_loop(self):
        found = self.bench("--shape=S=16", "--clients=2", "--concurrency=2")
        self.assertGreater(found["total"]["ok"], 0)
        self.assertEqual(found["total"]["ok"], found["total"]["calls"])
        self.assertEqual(
            found["answers"], {"checked": True, "good": True, "wrong": []}
        )

    def test_open_loop_of_several_sizes(self):
        found = self.bench(
            "--mix=S=16,T=300,Hq=4,Hkv=2:3,S=1,T=500,D=128,Dv=32:1",
            "--rate=100",
            "--type=float16",
            "--causal=bottom-right",
            "--timeout=30s",
        )
        self.assertEqual(
            [kind["name"] for kind in found["kinds"]],
            ["S=16,T=300,Hq=4,Hkv=2,D=64", "S=1,T=500,H=1,D=128,Dv=32"],
        )
        self.assertEqual(found["total"]["ok"], found["lag"]["count"])
        self.assertTrue(found["answers"]["good"])

    def test_table_and_file(self):
        run = self.call(
            "bench", "--warmup=0", "--duration=200ms", "--shape=S=16",
            "--json=load.json",
        )  # fmt: skip
        self.assertEqual(run.returncode, 0, run.stderr)
        self.assertIn("goodput", run.stdout)
        self.assertNotIn("\r", run.stdout + run.stderr)
        found = json.loads((self.folder / "load.json").read_text())
        self.assertGreater(found["total"]["ok"], 0)

    def test_health(self):
        found = self.bench("--health", "--rate=100")
        self.assertGreater(found["total"]["ok"], 0)

    def test_what_the_server_refuses(self):
        with ServerProcess(
            SERVER, "--max-request-bytes=2000", "--max-response-bytes=2000"
        ) as server:
            self.assert_fails(
                self.run_client("bench", f"--server={server.address}"),
                2,
                "RESOURCE_EXHAUSTED: ",
            )


class LifecycleTest(ProgramTest):
    def test_unreachable(self):
        server = f"--server=unix:{self.folder}/nobody"
        for command in [["compute", *IDENTITY], ["health"], ["info"]]:
            with self.subTest(command[0]):
                self.assert_fails(
                    self.run_client(*command, server), 3, "UNAVAILABLE: "
                )

    def test_unix_socket(self):
        with ServerProcess(
            SERVER, listen=f"unix:{self.folder}/socket"
        ) as server:
            run = self.run_client("health", f"--server={server.address}")
            self.assertEqual(run.stdout, "SERVING\n", run.stderr)

    def test_sigterm_of_an_idle_server(self):
        with ServerProcess(SERVER) as server:
            server.terminate()
            self.assertEqual(server.wait(), 0)
            self.assert_fails(
                self.run_client("health", f"--server={server.address}"),
                3,
                "UNAVAILABLE: ",
            )

    def test_sigterm_lets_a_running_call_finish(self):
        # How long a call must be to be caught depends on machine and build.
        for rows in [8192, 16384, 32768]:
            if self.caught_by_sigterm(rows):
                return
        self.fail("every call was over before the signal")

    def caught_by_sigterm(self, rows):
        """Whether a call of this size was running when the server was told to
        stop; either way it must be answered and the server exit with 0."""
        columns = 64
        write_npy(
            self.folder / "x.npy",
            "float32",
            [rows, columns],
            [0.0] * (rows * columns),
        )
        with ServerProcess(SERVER, "--threads=1") as server:
            idle = cpu_ticks(server.process.pid)
            client = subprocess.Popen(
                [
                    CLIENT,
                    "compute",
                    f"--server={server.address}",
                    "--query=x.npy",
                    "--key=x.npy",
                    "--value=x.npy",
                    "--output=out.npy",
                ],
                cwd=self.folder,
                stderr=subprocess.PIPE,
                text=True,
            )
            # Receiving a request of this size takes the server much less than
            # these 10 ticks (0.1 s); after them it computes.
            while (
                client.poll() is None
                and cpu_ticks(server.process.pid) < idle + 10
            ):
                pass
            server.terminate()
            caught = client.poll() is None
            _, errors = client.communicate(timeout=60)
            self.assertEqual(client.returncode, 0, errors)
            self.assertEqual(server.wait(), 0)
        self.assertEqual(read_npy(self.folder / "out.npy")[1], [rows, columns])
        return caught


def cpu_ticks(pid):
    """Processor time of a process so far, user and system."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1]
    return sum(int(field) for field in fields.split()[11:13])


if __name__ == "__main__":
    SERVER, CLIENT = sys.argv[1:3]
    unittest.main(argv=sys.argv[:1] + sys.argv[3:])
