"""What a client does to its process, and the process to a client."""

import os
import signal
import subprocess
import sys
import textwrap
import threading

import pytest

from attention_client import attention_pb2 as pb


def run(code, *arguments):
    """The output of a Python program, which has to end well, in time."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
    ).stdout


def test_it_lives_beside_grpcio_in_either_order(server_address):
    use = """
        import sys
        import numpy as np
        def here():
            import attention_client
            eye = np.eye(2, dtype=np.float32)
            with attention_client.Client(sys.argv[1], timeout=60) as client:
                print(client.compute(eye, eye, eye).output[0, 0])
        def grpcio():
            import grpc
            from attention_client import attention_pb2 as pb
            with grpc.insecure_channel(sys.argv[1]) as channel:
                call = channel.unary_unary(
                    "/attention.v1.AttentionService/GetCapabilities",
                    pb.GetCapabilitiesRequest.SerializeToString,
                    pb.GetCapabilitiesResponse.FromString)
                print(call(pb.GetCapabilitiesRequest()).key_block)
    """
    first = run(use + "    here(); grpcio(); here()", server_address)
    other = run(use + "    grpcio(); here(); grpcio()", server_address)
    assert first.split() == ["0.66976154", "256", "0.66976154"]
    assert other.split() == ["256", "0.66976154", "256"]


def test_the_extension_is_imported_before_grpcio(server_address):
    """The package imports grpcio first; here the extension is loaded by
    itself."""
    code = """
        import importlib.util, pathlib, sys
        place = importlib.util.find_spec("attention_client").origin
        (file,) = pathlib.Path(place).parent.glob("_native.*.so")
        spec = importlib.util.spec_from_file_location(
            "attention_client._native", file)
        native = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(native)
        assert "grpc" not in sys.modules
        core = native.Core(
            sys.argv[1], False, "", "", "", "", "", False, {})
        method = "/attention.v1.AttentionService/GetCapabilities"
        answer = core.call(method, b"", 60)
        import grpc
        with grpc.insecure_channel(sys.argv[1]) as channel:
            same = channel.unary_unary(method)(b"")
        print(answer == same == core.call(method, b"", 60))
    """
    assert run(code, server_address) == "True\n"


def test_control_c_ends_a_call(server):
    begun = """
        import os, signal, sys, threading
        import numpy as np
        from attention_client import Client
        eye = np.eye(2, dtype=np.float32)
        client = Client(sys.argv[1])
        # The server sends the signal once the call has come.
        print(os.getpid(), flush=True)
        try:
            if sys.argv[2] == "compute":
                client.compute(eye, eye, eye)
            else:
                client.health()
        except KeyboardInterrupt:
            print("interrupted")
    """
    for method, name in (("compute", "ComputeAttention"), ("health", "Check")):
        cancelled = threading.Event()
        with subprocess.Popen(
            [
                sys.executable,
                "-c",
                textwrap.dedent(begun),
                server.address,
                method,
            ],
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            pid = int(process.stdout.readline())

            def answer(request, context, pid=pid, cancelled=cancelled):
                context.add_callback(cancelled.set)
                os.kill(pid, signal.SIGINT)
                cancelled.wait(10)
                return pb.ComputeAttentionResponse()

            server.answers[name] = answer
            assert process.stdout.read() == "interrupted\n"
            assert process.wait(timeout=60) == 0
        assert cancelled.wait(5)


def test_a_process_ends_while_a_daemon_thread_waits(server):
    begun = threading.Event()
    ended = threading.Event()

    def answer(request, context):
        begun.set()
        ended.wait(20)
        return pb.ComputeAttentionResponse(output=request.query)

    server.answers["ComputeAttention"] = answer
    code = """
        import sys, threading
        import numpy as np
        from attention_client import Client
        eye = np.eye(2, dtype=np.float32)
        def call():
            client = Client(sys.argv[1])
            while True:
                client.compute(eye, eye, eye)
        threading.Thread(target=call, daemon=True).start()
        sys.stdin.readline()
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), server.address],
        stdin=subprocess.PIPE,
    ) as process:
        assert begun.wait(20)
        process.stdin.close()
        assert process.wait(timeout=20) == 0
        ended.set()


def test_a_client_is_not_for_a_forked_child(server_address):
    code = """
        import os, sys
        import numpy as np
        from attention_client import Client
        eye = np.eye(2, dtype=np.float32)
        client = Client(sys.argv[1], timeout=60)
        client.health()
        if os.fork() == 0:
            for call in (lambda: client.compute(eye, eye, eye),
                         client.capabilities, client.health):
                try:
                    call()
                except RuntimeError as error:
                    print(error, flush=True)
            client.close()
            del client
            os._exit(0)
        os.wait()
        print(client.health())
        client.close()
    """
    *told, after = run(code, server_address).splitlines()
    assert after == "SERVING"
    assert len(told) == 3
    for line in told:
        assert "before a fork, which gRPC does not survive" in line


def test_a_forked_child_may_have_a_client_if_it_is_the_first(server_address):
    code = """
        import os, sys
        from attention_client import Client
        if os.fork() == 0:
            with Client(sys.argv[1], timeout=60) as client:
                print(client.health(), flush=True)
            os._exit(0)
        print(os.wait()[1])
    """
    assert run(code, server_address) == "SERVING\n0\n"


@pytest.mark.parametrize("core", ["native"], indirect=True)
def test_after_another_one_it_is_refused(server_address):
    code = """
        import os, sys
        from attention_client import Client
        with Client(sys.argv[1], timeout=60) as client:
            client.health()
        if os.fork() == 0:
            try:
                Client(sys.argv[1])
            except RuntimeError as error:
                print(error, flush=True)
            os._exit(0)
        os.wait()
    """
    assert "before a fork, which gRPC does not" in run(code, server_address)


def test_processes_that_are_spawned(server_address, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent("""
            import multiprocessing, sys
            from attention_client import Client
            def ask(address):
                with Client(address, timeout=60) as client:
                    return client.health()
            if __name__ == "__main__":
                print(ask(sys.argv[1]))
                with multiprocessing.get_context("spawn").Pool(2) as pool:
                    print(pool.map(ask, sys.argv[1:] * 4))
        """)
    )
    output = subprocess.run(
        [sys.executable, program, server_address],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
    ).stdout
    assert output == f"SERVING\n{['SERVING'] * 4}\n"
