import contextlib
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    input_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from serving import grpc_api
from serving.engine import Servable
from serving.errors import ConfigError
from serving.grpc_api import Options
from serving.metrics import Metrics
from serving.models_config import ModelConfig
from serving.repository import Polling, Repository

TIMEOUT = 20
# Of the models that TensorFlow Serving's answers were recorded from, y = x/2 + 3 and friends.
RECORDED = Path(__file__).parent / "conformance" / "models" / "affine" / "2"


@contextlib.contextmanager
def serving(repository: Repository, **options: Any) -> Iterator[int]:
    """A server of a repository; yields its port."""
    server, port = grpc_api.start_server(repository, Metrics(), Options(**options))
    try:
        yield port
    finally:
        server.stop(0).wait(TIMEOUT)


@contextlib.contextmanager
def prediction_of(address: str) -> Iterator[prediction_service_pb2_grpc.PredictionServiceStub]:
    with grpc.insecure_channel(address) as channel:
        yield prediction_service_pb2_grpc.PredictionServiceStub(channel)


@pytest.fixture
def served(repository, add_version) -> Repository:
    """y = 2x + 1 as version 1."""
    add_version(1, 2.0)
    started = repository()
    started.start()
    return started


@pytest.fixture
def recorded(repository, tmp_path) -> Repository:
    """A model that classifies and regresses too."""
    shutil.copytree(RECORDED, tmp_path / "affine" / "2")
    started = repository()
    started.start()
    return started


@pytest.fixture
def channel(served) -> Iterator[grpc.Channel]:
    unlimited = (("grpc.max_receive_message_length", -1),)
    with (
        serving(served, max_calls=8) as port,
        grpc.insecure_channel(f"localhost:{port}", unlimited) as channel,
    ):
        yield channel


@pytest.fixture
def prediction(channel) -> prediction_service_pb2_grpc.PredictionServiceStub:
    return prediction_service_pb2_grpc.PredictionServiceStub(channel)


def request(**inputs) -> predict_pb2.PredictRequest:
    made = predict_pb2.PredictRequest()
    made.model_spec.name = "affine"
    for name, value in inputs.items():
        made.inputs[name].CopyFrom(tf.make_tensor_proto(np.asarray(value, np.float32)))
    return made


def examples(*values: float) -> input_pb2.Input:
    made = input_pb2.Input()
    for value in values:
        feature = made.example_list.examples.add().features.feature["x"]
        feature.float_list.value.append(value)
    return made


def code_of(call: Callable[[], object]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code(), caught.value.details() or ""


def test_predict_says_who_answered_and_uses_typed_fields(prediction):
    response = prediction.Predict(request(x=[1, 2]), timeout=TIMEOUT)
    assert list(response.outputs["y"].float_val) == [3, 5]
    assert response.model_spec.name == "affine"
    assert response.model_spec.version.value == 1
    assert response.model_spec.signature_name == "serving_default"


def test_answers_can_be_packed(served):
    with (
        serving(served, tensor_content=True) as port,
        prediction_of(f"localhost:{port}") as stub,
    ):
        output = stub.Predict(request(x=[1, 2]), timeout=TIMEOUT).outputs["y"]
    assert np.frombuffer(output.tensor_content, np.float32).tolist() == [3, 5]
    assert not output.float_val


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
    nameless = request(x=[1])
    nameless.model_spec.name = ""
    for made, code, words in (
        (unknown, grpc.StatusCode.NOT_FOUND, "Servable not found for request: Latest(nope)"),
        (absent, grpc.StatusCode.NOT_FOUND, "Specific(affine, 9)"),
        (label, grpc.StatusCode.INVALID_ARGUMENT, "Unrecognized servable version label: zz"),
        (signature, grpc.StatusCode.FAILED_PRECONDITION, '"nope" not found'),
        (bare, grpc.StatusCode.INVALID_ARGUMENT, "Missing ModelSpec"),
        (nameless, grpc.StatusCode.INVALID_ARGUMENT, "ModelSpec has no name specified"),
        (request(), grpc.StatusCode.INVALID_ARGUMENT, "Missing but required: {x}"),
        (request(z=[1]), grpc.StatusCode.INVALID_ARGUMENT, "Signature input alias: x(feed name: "),
    ):
        actual, details = code_of(lambda made=made: prediction.Predict(made, timeout=TIMEOUT))
        assert actual is code
        assert words in details


def test_classify_and_regress_answer_for_each_example(recorded):
    classify = classification_pb2.ClassificationRequest(input=examples(2, 4))
    classify.model_spec.name, classify.model_spec.signature_name = "affine", "classify"
    regress = regression_pb2.RegressionRequest(input=examples(2, 4))
    regress.model_spec.name, regress.model_spec.signature_name = "affine", "regress"
    with serving(recorded) as port, prediction_of(f"localhost:{port}") as stub:
        classified = stub.Classify(classify, timeout=TIMEOUT)
        regressed = stub.Regress(regress, timeout=TIMEOUT)
        regress.model_spec.signature_name = "classify"
        code, details = code_of(lambda: stub.Regress(regress, timeout=TIMEOUT))
    labels = [[c.label for c in x.classes] for x in classified.result.classifications]
    assert labels == [["low", "high"]] * 2
    assert [x.value for x in regressed.result.regressions] == [4, 5]
    assert regressed.model_spec.signature_name == "regress"
    assert regressed.model_spec.version.value == 2
    assert (code, details) == (grpc.StatusCode.INVALID_ARGUMENT, "Expected one output Tensor.")


def multi_inference(*signatures: str, model: str = "affine") -> inference_pb2.MultiInferenceRequest:
    made = inference_pb2.MultiInferenceRequest(input=examples(2))
    for signature in signatures:
        task = made.tasks.add(method_name=f"tensorflow/serving/{signature}")
        task.model_spec.name, task.model_spec.signature_name = model, signature
    return made


def test_multi_inference_answers_every_task_on_the_same_examples(recorded):
    with serving(recorded) as port, prediction_of(f"localhost:{port}") as stub:
        response = stub.MultiInference(multi_inference("regress", "classify"), timeout=TIMEOUT)
        regressed, classified = response.results
        assert [x.value for x in regressed.regression_result.regressions] == [4]
        assert classified.classification_result.classifications[0].classes[0].label == "low"
        assert classified.model_spec.version.value == 2
        predict = multi_inference("classify")
        predict.tasks[0].method_name = "tensorflow/serving/predict"
        for made, code, words in (
            (multi_inference(), grpc.StatusCode.INVALID_ARGUMENT, "no name specified"),
            (multi_inference("regress", model="nope"), grpc.StatusCode.NOT_FOUND, "nope"),
            (multi_inference("regress", "regress"), grpc.StatusCode.INVALID_ARGUMENT, "Duplicate"),
            (multi_inference("nope"), grpc.StatusCode.INVALID_ARGUMENT, "model graph: nope"),
            (predict, grpc.StatusCode.UNIMPLEMENTED, "tensorflow/serving/predict"),
        ):
            actual, details = code_of(lambda made=made: stub.MultiInference(made, timeout=TIMEOUT))
            assert actual is code
            assert words in details


def test_a_long_error_keeps_its_code_and_is_cut(prediction):
    long = request(x=[1])
    long.model_spec.signature_name = "é" * 20_000
    code, details = code_of(lambda: prediction.Predict(long, timeout=TIMEOUT))
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert details.startswith('Serving signature key "é')
    assert details.endswith("é...TRUNCATED")
    assert len(details.encode()) in (1023 + 12, 1024 + 12)


@pytest.mark.parametrize("signature", ["classify", "regress"])
def test_an_operations_words_need_be_no_text(recorded, signature):
    junk = predict_pb2.PredictRequest()
    junk.model_spec.name, junk.model_spec.signature_name = "affine", signature
    junk.inputs["inputs"].CopyFrom(tf.make_tensor_proto([b"\x89PNG"]))
    with serving(recorded) as port, prediction_of(f"localhost:{port}") as stub:
        code, details = code_of(lambda: stub.Predict(junk, timeout=TIMEOUT))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "Could not parse example input, value: '\ufffdPNG'" in details


def test_what_is_missing_is_named_before_anything_else(prediction):
    no_model = get_model_metadata_pb2.GetModelMetadataRequest()
    several = inference_pb2.MultiInferenceRequest(input=examples(1))
    several.tasks.add(method_name="tensorflow/serving/regress")
    second = inference_pb2.MultiInferenceRequest(input=examples(1))
    second.tasks.add(method_name="tensorflow/serving/regress").model_spec.name = "affine"
    second.tasks.add(method_name="tensorflow/serving/regress")
    second.tasks[0].model_spec.signature_name = "serving_default"
    broken = request(x=[1])
    broken.model_spec.signature_name = "nope"
    broken.inputs["x"].tensor_shape.dim[0].size = -1
    found = [
        code_of(lambda: prediction.GetModelMetadata(no_model, timeout=TIMEOUT)),
        code_of(lambda: prediction.MultiInference(several, timeout=TIMEOUT)),
        code_of(lambda: prediction.Predict(broken, timeout=TIMEOUT)),
    ]
    assert found == [
        (grpc.StatusCode.INVALID_ARGUMENT, "Missing ModelSpec"),
        (grpc.StatusCode.INVALID_ARGUMENT, "ModelSpec has no name specified."),
        (grpc.StatusCode.FAILED_PRECONDITION, 'Serving signature key "nope" not found.'),
    ]


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


def test_status_lists_versions_with_their_errors(served, tmp_path):
    (tmp_path / "affine" / "2").mkdir()
    served.poll()
    asked = get_model_status_pb2.GetModelStatusRequest()
    asked.model_spec.name = "affine"
    with serving(served) as port, grpc.insecure_channel(f"localhost:{port}") as channel:
        response = model_service_pb2_grpc.ModelServiceStub(channel).GetModelStatus(
            asked, timeout=TIMEOUT
        )
    state = get_model_status_pb2.ModelVersionStatus.State
    newest, oldest = response.model_version_status
    assert (newest.version, newest.state) == (2, state.END)
    assert "does not appear to contain a SavedModel" in newest.status.error_message
    assert newest.status.error_code == 5
    assert (oldest.version, oldest.state) == (1, state.AVAILABLE)
    assert not oldest.status.error_message


def reload_request(**base_paths: Path | str) -> model_management_pb2.ReloadConfigRequest:
    made = model_management_pb2.ReloadConfigRequest()
    made.config.model_config_list.SetInParent()
    for name, path in base_paths.items():
        made.config.model_config_list.config.add(
            name=name, base_path=str(path), model_platform="tensorflow"
        )
    return made


def test_a_client_may_say_what_is_served(channel, prediction, tmp_path):
    stub = model_service_pb2_grpc.ModelServiceStub(channel)
    stub.HandleReloadConfigRequest(reload_request(other=tmp_path / "affine"), timeout=TIMEOUT)
    made = request(x=[1])
    assert code_of(lambda: prediction.Predict(made, timeout=TIMEOUT))[0] is (
        grpc.StatusCode.NOT_FOUND
    )
    made.model_spec.name = "other"  # the call has waited for it
    assert prediction.Predict(made, timeout=TIMEOUT).outputs["y"].float_val == [3]
    stub.HandleReloadConfigRequest(reload_request())  # and none needs a deadline
    assert code_of(lambda: prediction.Predict(made, timeout=TIMEOUT))[0] is (
        grpc.StatusCode.NOT_FOUND
    )


def test_a_configuration_that_cannot_be_changes_nothing(channel, prediction, tmp_path):
    stub = model_service_pb2_grpc.ModelServiceStub(channel)
    twice = reload_request(other=tmp_path / "affine")
    twice.config.model_config_list.config.append(twice.config.model_config_list.config[0])
    torch = reload_request(other=tmp_path / "affine")
    torch.config.model_config_list.config[0].model_platform = "torch"
    label = reload_request(affine=tmp_path / "affine")
    label.config.model_config_list.config[0].version_labels["stable"] = 7
    for made, code, words in (
        (model_management_pb2.ReloadConfigRequest(), "INVALID_ARGUMENT", "ModelConfigList"),
        (twice, "INVALID_ARGUMENT", "list model other multiple times"),
        (torch, "INVALID_ARGUMENT", "unsupported platform torch"),
        (reload_request(other="a/b"), "INVALID_ARGUMENT", "absolute path"),
        (label, "FAILED_PRECONDITION", "version 7 of model affine"),
    ):
        actual, details = code_of(
            lambda made=made: stub.HandleReloadConfigRequest(made, timeout=TIMEOUT)
        )
        assert actual.name == code
        assert words in details
        assert prediction.Predict(request(x=[1]), timeout=TIMEOUT).outputs["y"].float_val == [3]


def test_messages_may_be_large(prediction):
    x = np.arange(3_000_000, dtype=np.float32)
    response = prediction.Predict(request(x=x), timeout=TIMEOUT)
    assert response.outputs["y"].float_val[-1] == 2 * x[-1] + 1


def test_a_port_in_use_is_named(repository):
    served = repository()
    with serving(served) as port:
        with pytest.raises(ConfigError, match=f"port {port} is in use: .* --port"):
            grpc_api.start_server(served, Metrics(), Options(port))
        with pytest.raises(ConfigError, match=f"port {port} is in use: .* --rest_api_port"):
            grpc_api.check_port(port, "--rest_api_port")


class Held(Servable):
    """A servable that answers once it is let go."""

    entered, go = threading.Event(), threading.Event()

    def predict(self, *arguments, **named):
        Held.entered.set()
        assert Held.go.wait(TIMEOUT)
        return super().predict(*arguments, **named)


def test_calls_beyond_the_limit_are_refused_at_once(add_version, tmp_path):
    add_version(1)
    model = ModelConfig("affine", tmp_path / "affine")
    served = Repository([model], Held, Polling(0, 0), threading.Event())
    served.start()
    Held.entered.clear()
    Held.go.clear()
    with serving(served, max_calls=1) as port, prediction_of(f"localhost:{port}") as stub:
        first = stub.Predict.future(request(x=[1]), timeout=TIMEOUT)
        assert Held.entered.wait(TIMEOUT)
        code, details = code_of(lambda: stub.Predict(request(x=[1]), timeout=TIMEOUT))
        Held.go.set()
        assert first.result(TIMEOUT).outputs["y"].float_val == [3]
        assert stub.Predict(request(x=[1]), timeout=TIMEOUT).outputs["y"].float_val == [3]
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "1 calls are under way, the limit of --grpc_max_threads" in details


def test_callers_who_send_no_message_hold_nobody_up(channel, prediction):
    here = threading.Event()

    def late():
        here.wait(TIMEOUT)
        yield b""

    call = channel.stream_unary("/tensorflow.serving.PredictionService/Predict")
    silent = [call.future(late()) for _ in range(20)]
    time.sleep(0.3)
    assert prediction.Predict(request(x=[1]), timeout=TIMEOUT).outputs["y"].float_val
    assert not any(each.done() for each in silent)
    here.set()
    assert {each.exception().code() for each in silent} == {grpc.StatusCode.INVALID_ARGUMENT}


def test_a_caller_whose_deadline_passes_is_told(add_version, tmp_path):
    add_version(1)
    model = ModelConfig("affine", tmp_path / "affine")
    served = Repository([model], Held, Polling(0, 0), threading.Event())
    served.start()
    Held.go.clear()
    with serving(served) as port, prediction_of(f"localhost:{port}") as stub:
        code, _ = code_of(lambda: stub.Predict(request(x=[1]), timeout=0.3))
        Held.go.set()
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED


def test_health_is_offered_on_request_and_for_the_whole_server_only(served):
    def check(port: int, service: str) -> Any:
        with grpc.insecure_channel(f"localhost:{port}") as channel:
            asked = health_pb2.HealthCheckRequest(service=service)
            stub: Any = health_pb2_grpc.HealthStub(channel)  # whose types lack its methods
            return stub.Check(asked, timeout=TIMEOUT)

    with serving(served, health=True) as port:
        assert check(port, "").status == health_pb2.HealthCheckResponse.SERVING
        code, _ = code_of(lambda: check(port, "tensorflow.serving.PredictionService"))
        assert code is grpc.StatusCode.NOT_FOUND
    with serving(served) as port:
        assert code_of(lambda: check(port, ""))[0] is grpc.StatusCode.UNIMPLEMENTED


def test_a_unix_socket_is_answered_on_too(served, tmp_path):
    with serving(served, socket_path=str(tmp_path / "socket")) as port:
        for address in (f"unix:{tmp_path}/socket", f"localhost:{port}"):
            with prediction_of(address) as stub:
                response = stub.Predict(request(x=[1]), timeout=TIMEOUT)
                assert response.outputs["y"].float_val == [3]


def test_a_socket_that_cannot_be_is_named(repository, tmp_path):
    with pytest.raises(ConfigError, match=r"mend .* --grpc_socket_path"):
        grpc_api.start_server(
            repository(), Metrics(), Options(socket_path=str(tmp_path / "none" / "socket"))
        )


def test_channel_arguments_come_before_our_own(served):
    limit = [("grpc.max_receive_message_length", 1000)]
    with serving(served, channel_arguments=limit) as port, prediction_of(f"localhost:{port}") as s:
        assert s.Predict(request(x=[1]), timeout=TIMEOUT).outputs["y"].float_val == [3]
        code, details = code_of(lambda: s.Predict(request(x=np.zeros(1000)), timeout=TIMEOUT))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "1000" in details


def test_every_call_is_logged_with_how_it_ended(served):
    entries: list[dict[str, Any]] = []
    with (
        serving(served, access_log=lambda **fields: entries.append(fields)) as port,
        prediction_of(f"localhost:{port}") as stub,
    ):
        stub.Predict(request(x=[1]), timeout=TIMEOUT)
        code_of(lambda: stub.Predict(request(), timeout=TIMEOUT))
    assert [entry["status"] for entry in entries] == ["OK", "INVALID_ARGUMENT"]
    for entry in entries:
        assert (entry["entrypoint"], entry["method"]) == ("GRPC", "Predict")
        assert entry["peer"].startswith("ipv")
        assert 0 < entry["seconds"] < TIMEOUT


def test_switching_versions_under_load_fails_no_request(repository, add_version):
    add_version(1, 1.0)
    served = repository()
    served.start()
    done = threading.Event()

    def call_on(port: int) -> set[tuple[int, float]]:
        answers = set()
        with prediction_of(f"localhost:{port}") as stub:
            while not done.is_set():
                response = stub.Predict(request(x=[1]), timeout=TIMEOUT)
                answers.add((response.model_spec.version.value, response.outputs["y"].float_val[0]))
        return answers

    with serving(served, max_calls=8) as port, futures.ThreadPoolExecutor(4) as pool:
        callers = [pool.submit(call_on, port) for _ in range(4)]
        for version in range(2, 6):
            add_version(version, float(version))
            served.poll()
        done.set()
        answers = set.union(*(caller.result(TIMEOUT) for caller in callers))
    assert answers <= {(version, version + 1.0) for version in range(1, 6)}
    assert len(answers) > 1
