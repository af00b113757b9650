"""Versions come and go under load."""

import asyncio
import gc
import shutil
from collections.abc import Callable
from pathlib import Path

import grpc
import numpy as np
import psutil
import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from serving.repository import Polling, Repository
from tests.serving.processes import serving

CALLERS = 16
X = 3.0


def request() -> predict_pb2.PredictRequest:
    made = predict_pb2.PredictRequest()
    made.model_spec.name = "affine"
    made.inputs["x"].CopyFrom(tf.make_tensor_proto(np.array([X], np.float32)))
    return made


Answers = list[tuple[int, float]]  # version and value


async def call_until(port: int, ended: asyncio.Event, answers: Answers) -> None:
    """Note the answer of every call of all callers; raises if one fails."""
    async with grpc.aio.insecure_channel(f"localhost:{port}") as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)

        async def caller() -> None:
            while not ended.is_set():
                response = await stub.Predict(request(), timeout=20)
                value = response.outputs["y"].float_val[0]
                answers.append((response.model_spec.version.value, value))

        await asyncio.gather(*(caller() for _ in range(CALLERS)))


@pytest.mark.parametrize(
    ("switches", "seconds"),
    [(3, 9.0), pytest.param(5, 60.0, marks=pytest.mark.slow)],
    ids=["short", "long"],
)
def test_no_call_fails_while_versions_are_switched(
    add_version: Callable[[int, float], Path], tmp_path: Path, switches: int, seconds: float
):
    add_version(1, 1.0)

    async def switch(ended: asyncio.Event, answers: Answers) -> None:
        for version in range(2, 2 + switches):
            await asyncio.sleep(seconds / (switches + 1))
            await asyncio.to_thread(add_version, version, float(version))
            async with asyncio.timeout(30):  # or the next one would overtake it
                while not answers or answers[-1][0] != version:
                    await asyncio.sleep(0.01)
        await asyncio.sleep(seconds / (switches + 1))
        ended.set()

    async def run(port: int) -> Answers:
        ended, answers = asyncio.Event(), Answers()
        async with asyncio.TaskGroup() as group:
            group.create_task(call_until(port, ended, answers))
            group.create_task(switch(ended, answers))
        return answers

    with serving("--model_name=affine", f"--model_base_path={tmp_path / 'affine'}") as server:
        answers = asyncio.run(run(server.port))
    assert {version for version, _ in answers} == set(range(1, 2 + switches))
    assert all(value == version * X + 1 for version, value in answers)
    assert len(answers) > 100 * seconds


@pytest.mark.slow
def test_two_hundred_versions_leave_no_memory_behind(
    repository: Callable[..., Repository], add_version: Callable[[int, float], Path], tmp_path: Path
):
    original = add_version(1, 1.0)
    served = repository(Polling(seconds=0, load_retries=0))
    served.start()
    process, sizes = psutil.Process(), []
    for version in range(2, 202):
        shutil.copytree(original, tmp_path / "incoming")
        (tmp_path / "incoming").rename(tmp_path / "affine" / str(version))
        served.poll()
        with served.servable("affine") as servable:
            assert servable.version == version
            servable.predict({"x": np.array([X], np.float32)})
        if version > 2:  # the first is what the others are copied from
            shutil.rmtree(tmp_path / "affine" / str(version - 1))
        served.poll()
        gc.collect()
        sizes.append(process.memory_info().rss)
    assert sizes[-1] < 1.1 * sizes[19]
