"""Requests sent to a server on this machine from one process: closed loop, and open loop.

Latencies of the open loop count from the moment a request was meant to be sent.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable

import grpc
import numpy as np
from tfs_client import tfs_pb2

PREDICT = "/tensorflow.serving.PredictionService/Predict"
TIMEOUT = 60.0
RAMP_SECONDS = 1.0

Call = Callable[[], Awaitable[object]]


def request(model: str, name: str, value: np.ndarray) -> bytes:
    """A serialized PredictRequest of one uint8 or float32 tensor."""
    message = tfs_pb2.PredictRequest()
    message.model_spec.name = model
    tensor = message.inputs[name]
    tensor.dtype = tfs_pb2.DT_UINT8 if value.dtype == np.uint8 else tfs_pb2.DT_FLOAT
    for size in value.shape:
        tensor.tensor_shape.dim.add(size=size)
    tensor.tensor_content = value.tobytes()
    return message.SerializeToString()


def closed_loop(port: int, data: bytes, callers: int, seconds: float) -> np.ndarray:
    """So many callers, each sending when it has its answer; seconds that each request took.

    Those are counted that were answered within the time: all callers are at work in it, since they
    start a second earlier and stop when it is over.
    """

    async def run(call: Call) -> np.ndarray:
        latencies: list[float] = []
        begin = time.perf_counter() + RAMP_SECONDS
        end = begin + seconds

        async def caller() -> None:
            while (started := time.perf_counter()) < end:
                await call()
                if begin <= (now := time.perf_counter()) < end:
                    latencies.append(now - started)

        await asyncio.gather(*(caller() for _ in range(callers)))
        return np.array(latencies)

    return asyncio.run(_with_channel(port, data, run))


def open_loop(port: int, data: bytes, rate: float, seconds: float) -> np.ndarray:
    """Requests at random moments (Poisson), `rate` a second; seconds that each took."""

    async def run(call: Call) -> np.ndarray:
        chance = random.Random(1)
        latencies: list[float] = []

        async def send(at: float) -> None:
            await call()
            latencies.append(time.perf_counter() - at)

        at = time.perf_counter()
        end, sent = at + seconds, []
        while (at := at + chance.expovariate(rate)) < end:
            await asyncio.sleep(max(0.0, at - time.perf_counter()))
            sent.append(asyncio.create_task(send(at)))
        await asyncio.gather(*sent)
        return np.array(latencies)

    return asyncio.run(_with_channel(port, data, run))


async def _with_channel(
    port: int, data: bytes, run: Callable[[Call], Awaitable[np.ndarray]]
) -> np.ndarray:
    async with grpc.aio.insecure_channel(f"localhost:{port}") as channel:
        predict: Callable[..., Awaitable[object]] = channel.unary_unary(PREDICT)
        return await run(lambda: predict(data, timeout=TIMEOUT))
