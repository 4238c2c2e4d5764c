"""The calls of pipeline.proto: sentences in, a vector for each token out."""

import asyncio

import grpc
from minilm import LAYERS, MiniLM

from attention_client import AttentionError, aio

# Generated from the file as it is now, when this module is loaded.
pb, rpc = grpc.protos_and_services("pipeline.proto")

MOST_SENTENCES = 64


class Embedder(rpc.EmbedderServicer):
    """`attention` is the target of the attention service."""

    def __init__(self, attention):
        self._model = MiniLM()
        # Connects when it is first needed, and again whenever the connection is lost.
        self._attention = aio.Client(attention)

    async def Embed(self, request, context):
        if not 1 <= len(request.sentences) <= MOST_SENTENCES:
            await context.abort(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"sentences: got {len(request.sentences)}, wanted 1 to {MOST_SENTENCES}",
            )
        encodings = self._model.tokenize(request.sentences)
        starts, x, attention_us = await self._run(encodings, LAYERS, context)
        return pb.EmbedResponse(
            tokens=pb.TokenVectors(starts=starts, vectors=x.tobytes()),
            attention_ms=attention_us / 1000,
        )

    async def Project(self, request, context):
        if not 0 <= request.layer < LAYERS:
            await context.abort(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"layer: got {request.layer}, wanted 0 to {LAYERS - 1}",
            )
        encodings = self._model.tokenize([request.sentence])
        _, x, _ = await self._run(encodings, request.layer, context)
        query, key, _ = self._model.project(x, request.layer)
        return pb.ProjectResponse(
            tokens=encodings[0].tokens,
            query=query.tobytes(),
            key=key.tobytes(),
        )

    async def _run(self, encodings, layers, context):
        """Starts, what comes out of the first `layers` layers, and the time in the service.

        A caller who gives up cancels this task, and that the call under way. Numpy
        works in threads, so that other callers are served meanwhile.
        """
        starts, x = await asyncio.to_thread(self._model.embed, encodings)
        attention_us = 0
        try:
            for layer in range(layers):
                query, key, value = await asyncio.to_thread(
                    self._model.project, x, layer
                )
                # Sentences of different lengths in one call, without padding.
                result = await self._attention.compute(
                    query,
                    key,
                    value,
                    layout="ragged",
                    query_starts=starts,
                    key_starts=starts,
                    timeout=context.time_remaining(),
                )
                attention_us += (
                    result.timing.queue_us + result.timing.compute_us
                )
                x = await asyncio.to_thread(
                    self._model.finish, x, result.output, layer
                )
        except AttentionError as error:
            await context.abort(error.code, f"attention: {error}")
        return starts, x, attention_us
