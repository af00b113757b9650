"""Requests byte for byte as tensorflow-serving-api makes them."""

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import inference_pb2, predict_pb2, regression_pb2
from tfs_client import _calls, _tensors
from tfs_client._errors import Asked

VALUES = {
    "pixels": np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3),
    "large": np.zeros((3, 224, 224, 3), np.uint8),
    "one": np.array([1.5], np.float32),
    "scalar": np.float64(2.5),
    "none": np.zeros((0, 4), np.int64),
    "strings": np.array([[b"a", b""], [b"\xff\x00", b"long" * 99]], object),
    "half": np.array([1.5, 2.5], np.float16),
    "one half": np.array(1.5, np.float16),
    "bfloat16": np.array([1.5, 2.5], ml_dtypes.bfloat16),
    "one bfloat16": np.array([1.5], ml_dtypes.bfloat16),
    "float8": np.array([1.5, 2], ml_dtypes.float8_e4m3fn),
    "complex": np.array([1 + 2j, 3], np.complex64),
    "one complex": np.array([1 + 2j]),
    "bool": np.array([True, False]),
    "one bool": np.array(True),
    "one uint64": np.array([2**63], np.uint64),
    "uint16": np.array([1, 2], np.uint16),
    "uint32": np.array([1, 2], np.uint32),
    "negative": np.array([-3], np.int8),
}


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("version", [None, 3, "stable"])
def test_predict(name, version):
    value = VALUES[name]
    theirs = predict_pb2.PredictRequest()
    theirs.model_spec.name = "m"
    theirs.model_spec.signature_name = "s"
    if isinstance(version, str):
        theirs.model_spec.version_label = version
    elif version:
        theirs.model_spec.version.value = version
    theirs.inputs["z"].CopyFrom(tf.make_tensor_proto(value))
    theirs.inputs["x"].CopyFrom(tf.make_tensor_proto(np.arange(3)))
    theirs.output_filter.extend(["b", "a"])
    ours = _calls.predict(Asked("m", version, "s"), {"z": value, "x": np.arange(3)}, ["b", "a"])
    assert ours.request == theirs.SerializeToString(deterministic=True)


def test_what_people_write_is_as_tensorflow_takes_it():
    for value in (1, 2.5, [1, 2], [[1.5], [2]], True, "text", ["a", "b"], 2**40):
        theirs = tf.make_tensor_proto(value, dtype=tf.int64 if value == 2**40 else None)
        ours = b"".join(_tensors.to_proto(_tensors.as_array(value)))
        assert ours == theirs.SerializeToString()


def test_requests_of_examples():
    example = tf.train.Example()
    example.features.feature["x"].float_list.value.extend([1.5, 2.5])
    example.features.feature["n"].int64_list.value.append(3)
    example.features.feature["image"].bytes_list.value.append(b"\xff\0")
    ours = [{"x": [1.5, 2.5], "n": 3, "image": b"\xff\0"}]
    regress = regression_pb2.RegressionRequest()
    regress.model_spec.name = "m"
    regress.input.example_list.examples.append(example)
    got = _calls.regress(Asked("m"), ours).request
    assert regression_pb2.RegressionRequest.FromString(got) == regress
    both = inference_pb2.MultiInferenceRequest(input=regress.input)
    both.tasks.add(method_name="tensorflow/serving/regress").model_spec.name = "m"
    both.tasks[0].model_spec.signature_name = "r"
    got = _calls.multi_inference(Asked("m"), ours, {"r": "regress"}).request
    assert inference_pb2.MultiInferenceRequest.FromString(got) == both
