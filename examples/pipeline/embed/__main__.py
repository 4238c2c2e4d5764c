"""python embed --listen 127.0.0.1:0 --attention 127.0.0.1:50051"""

import argparse
import asyncio
import os
import signal
import sys
from pathlib import Path

# Before numpy is loaded: its products here are small, and each call has a thread of its
# own. More threads would mostly wait for each other.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

# Where grpc finds pipeline.proto.
sys.path.append(str(Path(__file__).resolve().parents[1]))

from service import Embedder, rpc

STOP_SECONDS = 5


async def serve(arguments):
    server = grpc.aio.server()
    rpc.add_EmbedderServicer_to_server(Embedder(arguments.attention), server)
    status = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(status, server)
    port = server.add_insecure_port(arguments.listen)
    await server.start()
    await status.set(
        "pipeline.Embedder", health_pb2.HealthCheckResponse.SERVING
    )
    host = arguments.listen.rpartition(":")[0]
    print(f"listening on {host}:{port}", flush=True)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await stop.wait()
    await server.stop(STOP_SECONDS)


parser = argparse.ArgumentParser()
parser.add_argument("--listen", required=True, help="HOST:PORT, port 0 for any")
parser.add_argument("--attention", required=True, help="HOST:PORT")
asyncio.run(serve(parser.parse_args()))
