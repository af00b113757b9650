import threading
from collections.abc import Iterator
from concurrent import futures

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from serving import grpc_api
from serving.errors import ConfigError

TIMEOUT = 20


@pytest.fixture
def channel(repository, add_version) -> Iterator[grpc.Channel]:
    add_version(1, 2.0)
    served = repository()
    served.start()
    server, port = grpc_api.start_server(served, 0, max_threads=8)
    unlimited = (("grpc.max_receive_message_length", -1),)
    with grpc.insecure_channel(f"localhost:{port}", unlimited) as channel:
        yield channel
    server.stop(0).wait(TIMEOUT)


@pytest.fixture
def prediction(channel) -> prediction_service_pb2_grpc.PredictionServiceStub:
    return prediction_service_pb2_grpc.PredictionServiceStub(channel)


def request(**inputs) -> predict_pb2.PredictRequest:
    made = predict_pb2.PredictRequest()
    made.model_spec.name = "affine"
    for name, value in inputs.items():
        made.inputs[name].CopyFrom(tf.make_tensor_proto(np.asarray(value, np.float32)))
    return made


def code_of(call) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code(), caught.value.details()


def test_predict_says_who_answered_and_uses_typed_fields(prediction):
    response = prediction.Predict(request(x=[1, 2]), timeout=TIMEOUT)
    assert list(response.outputs["y"].float_val) == [3, 5]
    assert response.model_spec.name == "affine"
    assert response.model_spec.version.value == 1
    assert response.model_spec.signature_name == "serving_default"


def test_answers_can_be_packed(repository, add_version):
    add_version(1, 2.0)
    served = repository()
    served.start()
    server, port = grpc_api.start_server(served, 0, 4, tensor_content=True)
    with grpc.insecure_channel(f"localhost:{port}") as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        output = stub.Predict(request(x=[1, 2]), timeout=TIMEOUT).outputs["y"]
    server.stop(0).wait(TIMEOUT)
    assert np.frombuffer(output.tensor_content, np.float32).tolist() == [3, 5]


def test_errors_have_tensorflow_servings_codes(prediction):
    unknown = request(x=[1])
    unknown.model_spec.name = "nope"
    absent = request(x=[1])
    absent.model_spec.version.value = 9
    label = request(x=[1])
    label.model_spec.version_label = "zz"
    signature = request(x=[1])
    signature.model_spec.signature_name = "nope"
    bare = predict_pb2.PredictRequest()
    for made, code, words in (
        (unknown, grpc.StatusCode.NOT_FOUND, "Servable not found for request: Latest(nope)"),
        (absent, grpc.StatusCode.NOT_FOUND, "Specific(affine, 9)"),
        (label, grpc.StatusCode.INVALID_ARGUMENT, "Unrecognized servable version label: zz"),
        (signature, grpc.StatusCode.FAILED_PRECONDITION, '"nope" not found'),
        (bare, grpc.StatusCode.INVALID_ARGUMENT, "Missing ModelSpec"),
        (request(), grpc.StatusCode.INVALID_ARGUMENT, "Missing but required: {x}"),
    ):
        actual, details = code_of(lambda made=made: prediction.Predict(made, timeout=TIMEOUT))
        assert actual is code
        assert words in details


def test_metadata_has_the_signatures(prediction):
    asked = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    asked.model_spec.name = "affine"
    response = prediction.GetModelMetadata(asked, timeout=TIMEOUT)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(signatures)
    assert set(signatures.signature_def["pair"].inputs) == {"a", "b"}
    assert response.model_spec.version.value == 1
    nothing = get_model_metadata_pb2.GetModelMetadataRequest(model_spec=asked.model_spec)
    code, details = code_of(lambda: prediction.GetModelMetadata(nothing, timeout=TIMEOUT))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "at least one metadata_field" in details
    asked.metadata_field.append("weights")
    code, details = code_of(lambda: prediction.GetModelMetadata(asked, timeout=TIMEOUT))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "weights" in details


def test_status_lists_versions_with_their_errors(repository, add_version, tmp_path):
    add_version(1)
    served = repository()
    served.start()
    (tmp_path / "affine" / "2").mkdir()
    served.poll()
    server, port = grpc_api.start_server(served, 0, 4)
    asked = get_model_status_pb2.GetModelStatusRequest()
    asked.model_spec.name = "affine"
    with grpc.insecure_channel(f"localhost:{port}") as channel:
        response = model_service_pb2_grpc.ModelServiceStub(channel).GetModelStatus(
            asked, timeout=TIMEOUT
        )
    server.stop(0).wait(TIMEOUT)
    state = get_model_status_pb2.ModelVersionStatus.State
    newest, oldest = response.model_version_status
    assert (newest.version, newest.state) == (2, state.END)
    assert "Could not find SavedModel" in newest.status.error_message
    assert newest.status.error_code == 5
    assert (oldest.version, oldest.state) == (1, state.AVAILABLE)
    assert not oldest.status.error_message


def test_messages_may_be_large(prediction):
    x = np.arange(3_000_000, dtype=np.float32)
    response = prediction.Predict(request(x=x), timeout=TIMEOUT)
    assert response.outputs["y"].float_val[-1] == 2 * x[-1] + 1


def test_a_port_in_use_is_named(repository, add_version):
    add_version(1)
    served = repository()
    server, port = grpc_api.start_server(served, 0, 4)
    with pytest.raises(ConfigError, match=f"port {port} is in use: .* --port"):
        grpc_api.start_server(served, port, 4)
    with pytest.raises(ConfigError, match=f"port {port} is in use: .* --port"):
        grpc_api.check_port(port)
    server.stop(0).wait(TIMEOUT)


def test_switching_versions_under_load_fails_no_request(repository, add_version):
    add_version(1, 1.0)
    served = repository()
    served.start()
    server, port = grpc_api.start_server(served, 0, max_threads=8)
    done = threading.Event()

    def call_on() -> set[tuple[int, float]]:
        answers = set()
        with grpc.insecure_channel(f"localhost:{port}") as channel:
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            while not done.is_set():
                response = stub.Predict(request(x=[1]), timeout=TIMEOUT)
                answers.add((response.model_spec.version.value, response.outputs["y"].float_val[0]))
        return answers

    with futures.ThreadPoolExecutor(4) as pool:
        callers = [pool.submit(call_on) for _ in range(4)]
        for version in range(2, 6):
            add_version(version, float(version))
            served.poll()
        done.set()
        answers = set.union(*(caller.result(TIMEOUT) for caller in callers))
    server.stop(0).wait(TIMEOUT)
    assert answers <= {(version, version + 1.0) for version in range(1, 6)}
    assert len(answers) > 1
