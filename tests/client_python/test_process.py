"""What a client does to its process, and the process to a client."""

import os
import queue
import signal
import subprocess
import sys
import textwrap
import threading

import pytest
from grpc_health.v1 import health_pb2

from attention_client import attention_pb2 as pb
from attention_client import session_pb2 as session_pb


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
            sys.argv[1], False, b"", b"", b"", "", b"", False, True, 1, {})
        method = "/attention.v1.AttentionService/GetCapabilities"
        answer = core.call(method, b"", 60)
        import grpc
        with grpc.insecure_channel(sys.argv[1]) as channel:
            same = channel.unary_unary(method)(b"")
        print(answer == same == core.call(method, b"", 60))
    """
    assert run(code, server_address) == "True\n"


@pytest.mark.parametrize(
    ("call", "method"),
    [
        ("client.compute(eye, eye, eye)", "ComputeAttention"),
        ("client.health()", "Check"),
    ],
)
def test_control_c_ends_a_call(server, call, method):
    code = f"""
        import os, sys
        import numpy as np
        from attention_client import Client
        eye = np.eye(2, dtype=np.float32)
        client = Client(sys.argv[1])
        print(os.getpid(), flush=True)
        try:
            {call}
        except KeyboardInterrupt:
            print("interrupted")
    """
    cancelled = []
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), server.address],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        pid = int(process.stdout.readline())

        def answer(request, context):
            ended = threading.Event()
            context.add_callback(ended.set)
            os.kill(pid, signal.SIGINT)
            # So that a call that goes on fails rather than hangs.
            cancelled.append(ended.wait(10))
            return pb.ComputeAttentionResponse()

        server.answers[method] = answer
        assert process.stdout.read() == "interrupted\n"
        assert process.wait(timeout=60) == 0
    server.stop()  # Waits for the answer.
    assert cancelled == [True]


def test_control_c_ends_a_step(server):
    code = """
        import os, sys
        import numpy as np
        from attention_client import Client
        key = np.ones((1, 1, 2), np.float32)
        session = Client(sys.argv[1]).create_session()
        print(os.getpid(), flush=True)
        try:
            session.append(key, key)
        except KeyboardInterrupt:
            print("interrupted")
    """
    pids, cancelled = queue.SimpleQueue(), []
    server.answers["CreateSession"] = lambda request, context: (
        session_pb.CreateSessionResponse(
            session=session_pb.Session(id="a", lengths=[0])
        )
    )

    def answer(requests, context):
        ended = threading.Event()
        context.add_callback(ended.set)
        next(requests)
        os.kill(pids.get(timeout=10), signal.SIGINT)
        # So that a call that goes on fails rather than hangs.
        cancelled.append(ended.wait(10))
        yield session_pb.StepResponse()

    server.answers["Step"] = answer
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), server.address],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        pids.put(int(process.stdout.readline()))
        assert process.stdout.read() == "interrupted\n"
        assert process.wait(timeout=60) == 0
    server.stop()  # Waits for the answer.
    assert cancelled == [True]


def test_sessions_keep_no_process_alive(server_address):
    code = """
        import sys
        import numpy as np
        from attention_client import Client
        client = Client(sys.argv[1])
        key = np.ones((1, 1, 2), np.float32)
        session = client.create_session(kv_heads=1, head_size=2, lease=1)
        print(session.append(key, key))
    """
    assert run(code, server_address) == "1\n"


def test_sessions_are_not_for_a_forked_child(server_address):
    code = """
        import os, sys
        import numpy as np
        from attention_client import Client
        client = Client(sys.argv[1])
        key = np.ones((1, 1, 2), np.float32)
        session = client.create_session(kv_heads=1, head_size=2)
        session.append(key, key)
        if os.fork() == 0:
            for call in (lambda: session.append(key, key), session.refresh,
                         session.delete, client.create_session):
                try:
                    call()
                except RuntimeError as error:
                    print(error, flush=True)
            client.close()
            del session, client
            os._exit(0)
        os.wait()
        print(session.append(key, key))
    """
    *told, after = run(code, server_address).splitlines()
    assert after == "2"
    assert len(told) == 4
    for line in told:
        assert "before a fork, which gRPC does not survive" in line


@pytest.mark.parametrize("core", ["native"], indirect=True)
def test_a_process_ends_while_a_daemon_thread_waits(server):
    """Of two calls, the one of the main thread is made when the interpreter has
    begun to end; that of the other thread is answered before it."""
    daemon_s, main_s = threading.Event(), threading.Event()

    def answer(request, context):
        if request.query.shape[0] == 1:
            context.add_callback(daemon_s.set)
            main_s.wait(20)
        else:
            main_s.set()
            daemon_s.wait(20)
        return pb.ComputeAttentionResponse(output=request.query)

    server.answers["ComputeAttention"] = answer
    server.answers["Check"] = lambda request, context: (
        health_pb2.HealthCheckResponse(status="SERVING")
    )
    code = """
        import sys, threading
        import numpy as np
        from attention_client import Client
        client = Client(sys.argv[1])
        client.health()  # All modules are loaded by now.
        array = np.ones((1, 1), np.float32)
        # Not a function of this module, which would keep it from its end.
        threading.Thread(
            target=client.compute, args=(array, array, array), daemon=True
        ).start()
        class AtTheEnd:
            print, compute = print, client.compute
            array = np.ones((2, 1), np.float32)
            def __del__(self):
                a = self.array
                self.print(self.compute(a, a, a).output.shape, flush=True)
        at_the_end = AtTheEnd()
    """
    assert run(code, server.address) == "(2, 1)\n"


@pytest.mark.parametrize("core", ["native"], indirect=True)
def test_a_process_ends_while_a_call_tells_that_it_has(server_address):
    """gRPC's thread runs Python then, and comes back to it when the interpreter
    has begun to end."""
    code = """
        import os, sys, threading, types
        from attention_client import Client
        native = Client(sys.argv[1])._core._native
        reading, writing = os.pipe()
        told = threading.Event()
        def done(outcome):
            told.set()
            os.read(reading, 1)
        method = "/grpc.health.v1.Health/Check"
        native.start_call(method, b"", 60, done)
        told.wait()
        class AtTheEnd:
            print, write, call = print, os.write, native.call
            pipe, method = writing, method
            def __del__(self):
                self.write(self.pipe, b"x")
                for _ in range(10):
                    self.call(self.method, b"", 60)
                self.print("ended", flush=True)
        last = types.ModuleType("last")
        last.of_all = AtTheEnd()
        sys.modules["last"] = last
        del last
    """
    assert run(code, server_address) == "ended\n"


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
