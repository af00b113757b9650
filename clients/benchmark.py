"""What the client costs beyond gRPC and protobuf; prints Markdown.

    make benchmark-client [FLAGS="--rounds 9 --output docs/client-benchmark.md"]

Client and bare stub take turns against one server process that sends back one and the same answer;
so what differs is the client. About a minute on two cores, in which nothing else may run.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path

import grpc
import numpy as np
from tfs_client import AsyncClient, Client, _calls, _tensors, tfs_pb2
from tfs_client._errors import Asked
from tfs_client.bench import machine, measure
from tfs_client.bench.loads import Closed
from tfs_client.bench.payloads import Payload

PREDICT = "/tensorflow.serving.PredictionService/Predict"
IN_FLIGHT = 256
SMALL_POOL = 4  # threads of a server that wastes little time on handing requests to them
LOAD_CALLERS = 128
GOALS = {"encode": 1.05, "overhead": 60.0, "async": 0.9, "load": 6000.0}
OTHER = "tensorflow_serving.apis.prediction_service_pb2_grpc"


def main() -> None:
    """Measure, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9, help="turns that each has")
    parser.add_argument("--output", type=Path, help="file to write the same text into")
    parser.add_argument("--serve", type=int, metavar="THREADS", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve)
        return
    with server() as address:
        lines = [*head(options.rounds), encoding(options.rounds), calls(address, options.rounds)]
        lines.append(asyncio.run(flights(address, options.rounds)))
    with server(SMALL_POOL) as address:
        lines.append(load(address, options.rounds))
    lines += imports()
    text = "\n".join(lines) + "\n"
    print(text, end="")
    if options.output:
        options.output.write_text(text)


def head(rounds: int) -> Iterator[str]:
    """The machine."""
    yield "# What the client costs"
    yield ""
    yield f"Measured by `make benchmark-client`, medians of {rounds} turns."
    yield ""
    yield from (f"- {name}: {value}" for name, value in machine.describe().items())
    yield ""


def encoding(rounds: int) -> str:
    """A batch of 32 pictures into a request, and its answer back, beside what must be."""
    pixels = np.random.default_rng(1).integers(0, 256, (32, 224, 224, 3), np.uint8)
    filled = tfs_pb2.PredictRequest.FromString(_request({"images": pixels}))
    classes = _tensors.as_array([["a", "b", "c", "d", "e"]] * 32)
    answer = _answer({"classes": classes, "scores": np.ones((32, 5), np.float32)})

    def ours() -> None:
        _request({"images": pixels})
        response = tfs_pb2.PredictResponse.FromString(answer)
        for proto in response.outputs.values():
            _tensors.from_proto(proto)

    def least() -> None:
        pixels.tobytes()
        filled.SerializeToString()

    mine, bare = in_turns(rounds * 5, ours, least)
    return (
        f"- encoding 32×224×224×3 uint8 and decoding the answer: {1e3 * mine:.2f} ms; one copy and "
        f"protobuf's own serialisation {1e3 * bare:.2f} ms; ratio {mine / bare:.2f}"
        f"{goal(mine / bare, 'encode', 'at most')}"
    )


def calls(address: str, rounds: int) -> str:
    """One caller after another."""
    value = np.ones(1, np.float32)
    message = tfs_pb2.PredictRequest.FromString(_request({"x": value}))
    with Client(address) as client, grpc.insecure_channel(address) as channel:
        stub = channel.unary_unary(
            PREDICT,
            request_serializer=lambda request: request.SerializeToString(),
            response_deserializer=tfs_pb2.PredictResponse.FromString,
        )
        mine, bare = in_turns(
            rounds * 300, lambda: client.predict({"x": value}), lambda: stub(message, timeout=30)
        )
    micros = 1e6 * (mine - bare)
    return (
        f"- a synchronous call of one float: {1e6 * mine:.0f} µs, bare {1e6 * bare:.0f} µs; "
        f"{micros:.0f} µs more{goal(micros, 'overhead', 'at most')}"
    )


async def flights(address: str, rounds: int) -> str:
    """Many calls at a time."""
    value = np.ones(1, np.float32)
    message = tfs_pb2.PredictRequest.FromString(_request({"x": value}))
    count = 10 * IN_FLIGHT
    rates: dict[str, list[float]] = {"ours": [], "bare": []}
    async with AsyncClient(address) as client, grpc.aio.insecure_channel(address) as channel:
        stub = channel.unary_unary(
            PREDICT,
            request_serializer=lambda request: request.SerializeToString(),
            response_deserializer=tfs_pb2.PredictResponse.FromString,
        )

        async def ours() -> None:
            for _ in range(count // IN_FLIGHT):
                await client.predict({"x": value})

        async def bare() -> None:
            for _ in range(count // IN_FLIGHT):
                await stub(message, timeout=30)

        for turn in range(rounds + 1):
            for name, caller in (("ours", ours), ("bare", bare))[:: 1 if turn % 2 else -1]:
                started = time.perf_counter()
                await asyncio.gather(*(caller() for _ in range(IN_FLIGHT)))
                rates[name].append(count / (time.perf_counter() - started))
    mine, theirs = (statistics.median(rates[name][1:]) for name in ("ours", "bare"))
    return (
        f"- AsyncClient with {IN_FLIGHT} calls in flight: {mine:,.0f} calls/s, bare grpc.aio "
        f"{theirs:,.0f}; ratio {mine / theirs:.2f}{goal(mine / theirs, 'async', 'at least')}"
    )


def load(address: str, rounds: int) -> str:
    """The load generator: what it can send, and what else measures it on the same cores."""
    request = _request({"x": np.ones(1, np.float32)})
    payload = Payload(request, 1, {"y": np.ones(1, np.float32)})
    with measure.senders({"address": address}, [payload]) as senders:
        found = [senders.measure(Closed(LOAD_CALLERS), 1.0, least=3, most=3) for _ in range(rounds)]
    rate = statistics.median(each.whole.images_per_second for each in found)
    processor = statistics.median(each.processor for each in found)
    assert not any(each.bad for each in found)
    return (
        f"- `tfs bench` with {LOAD_CALLERS} callers and a server of {SMALL_POOL} threads on the "
        f"same cores: {rate:,.0f} requests/s, with {100 * processor:.0f} % of a core for the "
        f"sender{goal(rate, 'load', 'at least')}"
    )


def imports() -> Iterator[str]:
    """Beside tensorflow-serving-api where that is installed; test_isolation.py has the limits."""
    for name in ("tfs_client", OTHER):
        code = (
            f"import time; t = time.perf_counter(); import {name}; t = time.perf_counter() - t;"
            "status = open('/proc/self/status').read().split();"
            "print(t, int(status[status.index('VmHWM:') + 1]) / 1024)"
        )
        found = [
            subprocess.run(
                [sys.executable, "-c", code], capture_output=True, text=True, check=False
            )
            for _ in range(3)
        ]
        if any(done.returncode for done in found):
            continue
        rows = [done.stdout.split() for done in found]
        seconds, megabytes = (min(map(float, column)) for column in zip(*rows, strict=True))
        yield (f"- import {name.partition('.')[0]}: {seconds:.2f} s, {megabytes:.0f} MB resident")


def in_turns(turns: int, *functions: Callable[[], object]) -> list[float]:
    """Median seconds of each."""
    seconds: list[list[float]] = [[] for _ in functions]
    for turn in range(turns):
        order = list(zip(functions, seconds, strict=True))
        for function, times in order[:: 1 if turn % 2 else -1]:  # nobody is always second
            started = time.perf_counter()
            function()
            times.append(time.perf_counter() - started)
    return [statistics.median(times) for times in seconds]


def goal(value: float, name: str, way: str) -> str:
    """Whether it is met."""
    limit = GOALS[name]
    met = value <= limit if way == "at most" else value >= limit
    return f" (goal: {way} {limit:g}, {'met' if met else 'missed'})"


def _request(inputs: dict[str, np.ndarray]) -> bytes:
    return _calls.predict(Asked("m"), inputs, ()).request


def _answer(outputs: dict[str, np.ndarray]) -> bytes:
    response = tfs_pb2.PredictResponse()
    response.model_spec.name = "m"
    for name, value in outputs.items():
        response.outputs[name].ParseFromString(b"".join(_tensors.to_proto(value)))
    return response.SerializeToString()


def serve(threads: int) -> None:
    """Answer every request alike, until standard input ends."""
    answer = _answer({"y": np.ones(1, np.float32)})
    server = grpc.server(futures.ThreadPoolExecutor(threads))
    handlers = {"Predict": grpc.unary_unary_rpc_method_handler(lambda *_: answer)}
    service = PREDICT.split("/")[1]
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    print(server.add_insecure_port("localhost:0"), flush=True)
    server.start()
    sys.stdin.read()


@contextlib.contextmanager
def server(threads: int = IN_FLIGHT) -> Iterator[str]:
    """A process that serves; its address."""
    with subprocess.Popen(
        [sys.executable, __file__, "--serve", str(threads)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout
        try:
            yield f"localhost:{int(process.stdout.readline())}"
        finally:
            process.kill()


if __name__ == "__main__":
    main()
