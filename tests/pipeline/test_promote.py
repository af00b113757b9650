"""Promotion and roll-back on a real server, which is asked by label."""

import contextlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import grpc
import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc
from tfs_client import Client
from tfs_client.bench.servers import free_port

from pipeline import labels, promote, publish
from pipeline.errors import PipelineError
from pipeline.repository import LocalRepository
from tests.conftest import ROOT, Affine
from tests.pipeline import exports

TIMEOUT = 20


def publish_line(folder: Path, models: Path, slope: float) -> int:
    def save(export):
        model = Affine(slope)
        tf.saved_model.save(model, str(export), signatures={"serving_default": model.line})

    return publish.publish(exports.make_run(folder, save), models, force=True)


@contextlib.contextmanager
def serving(*flags: str) -> Iterator[str]:
    """A server on a free port; its address once it is available."""
    port = free_port()
    command = [sys.executable, "-m", "serving", f"--port={port}", *flags]
    with (
        subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) as process,
        Client(f"localhost:{port}") as client,
    ):
        try:
            client.wait_until_ready(60)
            yield client.address
        finally:
            process.terminate()
            process.wait(60)


def ask(address: str, label: str) -> tuple[int, float]:
    """The version that answers for a label, and what it makes of 1."""
    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.version_label = "googlenet", label
    request.inputs["x"].CopyFrom(tf.make_tensor_proto([1.0]))
    with grpc.insecure_channel(address) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        answer = stub.Predict(request, timeout=TIMEOUT)
    return answer.model_spec.version.value, answer.outputs["y"].float_val[0]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """Version n is y = n·x + 1; version 3 cannot be loaded."""
    folder = tmp_path_factory.mktemp("promote")
    for version in (1, 2):
        publish_line(folder / f"run-{version}", folder / "models", float(version))
    publish.publish(exports.make_run(folder / "run-3"), folder / "models", force=True)
    return folder / "models"


@pytest.fixture(scope="module")
def address(models) -> Iterator[str]:
    """A server that follows models.config."""
    promote.promote(models, 1, "stable")
    with serving(
        f"--model_config_file={models}/models.config",
        "--model_config_file_poll_wait_seconds=1",
        "--allow_version_labels_for_unavailable_models",
    ) as address:
        yield address


def test_a_server_follows_promotion_and_roll_back(models, address, command):
    assert ask(address, "stable") == (1, 2)
    promote.promote(models, 2, "canary", address, TIMEOUT)
    assert ask(address, "canary") == (2, 3)
    assert ask(address, "stable") == (1, 2)
    done = command(
        "pipeline", "promote", 2, "--label=stable", "--repository", models, "--address", address
    )
    assert (done.returncode, done.stdout) == (0, f"stable is version 2 on {address}\n")
    assert ask(address, "stable") == (2, 3)
    assert promote.rollback(models, address, TIMEOUT) == 1
    assert ask(address, "stable") == (1, 2)
    assert ask(address, "canary") == (2, 3)


def test_a_version_that_cannot_be_loaded_gets_no_label(models, address):
    before = (models / "models.config").read_text()
    with pytest.raises(PipelineError, match=r"cannot load version 3: END .*has no graph") as caught:
        promote.promote(models, 3, "stable", address, TIMEOUT)
    assert address in str(caught.value)
    assert (models / "models.config").read_text() == before
    # What failed before says nothing about this time.
    with pytest.raises(PipelineError, match="version 3 AVAILABLE after 4 s: END"):
        promote.promote(models, 3, "stable", address, 4)
    assert ask(address, "stable") == (1, 2)


def test_a_server_that_does_not_follow_is_named(models, address, tmp_path):
    before = (models / "models.config").read_text()
    fixed = tmp_path / "models.config"
    fixed.write_text(
        f'model_config_list {{ config {{ name: "googlenet" base_path: "{models}/googlenet" '
        'model_platform: "tensorflow" model_version_policy { specific { versions: 1 } } } }'
    )
    with serving(f"--model_config_file={fixed}") as other:
        with pytest.raises(PipelineError, match="version 2 AVAILABLE after 0 s: not asked for"):
            promote.promote(models, 2, "stable", other, 0)
        with pytest.raises(PipelineError, match="label canary at version 1 after 0 s: Unrecog"):
            promote.promote(models, 1, "canary", other, 0)
    assert (models / "models.config").read_text() == before


def test_a_server_of_other_versions_takes_no_labels_away(models, address, tmp_path):
    before = (models / "models.config").read_text()
    shutil.copytree(models / "googlenet" / "1", tmp_path / "googlenet" / "7")
    with (
        serving(f"--model_base_path={tmp_path}/googlenet", "--model_name=googlenet") as other,
        pytest.raises(PipelineError, match=r"has none of the versions that models\.config names"),
    ):
        promote.promote(models, 2, "canary", other, 0)
    assert (models / "models.config").read_text() == before


def test_labels_stay_while_a_server_that_lacks_them_is_waited_for(models, address, tmp_path):
    """Those whose version it has: others follow the file."""
    shutil.copytree(models / "googlenet" / "1", tmp_path / "googlenet" / "1")
    with (
        serving(f"--model_base_path={tmp_path}/googlenet", "--model_name=googlenet") as other,
        futures.ThreadPoolExecutor(1) as pool,
    ):
        promotion = pool.submit(promote.promote, models, 2, "canary", other, 4)
        while not promotion.done():
            assert ask(address, "stable") == (1, 2)
        with pytest.raises(PipelineError, match="version 2 AVAILABLE after 4 s: not asked for"):
            promotion.result()


def test_no_server_no_change(models, address):
    before = (models / "models.config").read_text()
    with pytest.raises(PipelineError, match="is the server running"):
        promote.promote(models, 2, "stable", f"localhost:{free_port()}", TIMEOUT)
    assert (models / "models.config").read_text() == before


@pytest.fixture
def own(tmp_path) -> Path:
    """As `models`, for one test."""
    for version in (1, 2):
        publish_line(tmp_path / f"run-{version}", tmp_path / "models", float(version))
    publish.publish(exports.make_run(tmp_path / "run-3"), tmp_path / "models", force=True)
    promote.promote(tmp_path / "models", 1, "stable")
    return tmp_path / "models"


def following(models: Path, seconds: int) -> contextlib.AbstractContextManager[str]:
    return serving(
        f"--model_config_file={models}/models.config",
        f"--model_config_file_poll_wait_seconds={seconds}",
        "--allow_version_labels_for_unavailable_models",
    )


@pytest.mark.parametrize("forgotten", [True, False])
def test_a_server_that_refused_the_file_follows_when_it_is_named(own, forgotten):
    """It was not named, or looks so rarely that it saw the second of the two files alone."""
    with following(own, 1) as one, following(own, 4) as rare:
        promote.promote(own, 2, "stable", None if forgotten else one, TIMEOUT)
        for address in (one, rare):
            promote.promote(own, 2, "stable", address, TIMEOUT)
            assert ask(address, "stable") == (2, 3)
        assert ask(one, "stable") == (2, 3)


def test_a_broken_canary_does_not_hold_up_stable(own):
    with following(own, 1) as address:
        promote.promote(own, 3, "canary")
        promote.promote(own, 2, "stable", address, TIMEOUT)
        assert ask(address, "stable") == (2, 3)
        assert promote.rollback(own, address, TIMEOUT) == 1
        assert ask(address, "stable") == (1, 2)


def test_a_roll_back_passes_over_versions_that_are_gone(tmp_path):
    for run in range(4):
        publish.publish(exports.make_run(tmp_path / f"run-{run}"), tmp_path / "models", force=True)
    store = tmp_path / "models"
    for version in (1, 2, 3, 4):
        promote.promote(store, version, "stable")
    shutil.rmtree(store / "googlenet" / "2")
    assert promote.rollback(store) == 3
    assert "versions: 1" in (store / "models.config").read_text()
    assert promote.rollback(store) == 1
    with pytest.raises(PipelineError, match="stable before"):
        promote.rollback(store)


def test_a_stable_version_that_is_gone_is_nothing_to_roll_back_to(tmp_path):
    for run in range(3):
        publish.publish(exports.make_run(tmp_path / f"run-{run}"), tmp_path / "models", force=True)
    store = tmp_path / "models"
    promote.promote(store, 1, "stable")
    promote.promote(store, 2, "stable")
    shutil.rmtree(store / "googlenet" / "2")
    promote.promote(store, 3, "stable")
    served = labels.read(LocalRepository(store))
    assert (served.labels, served.versions) == ({"stable": 3}, (1, 3))
    # Another of its number was never stable.
    shutil.copytree(store / "googlenet" / "3", store / "googlenet" / "2")
    assert promote.rollback(store) == 1
