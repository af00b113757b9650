"""The client's messages against TensorFlow's own, field by field, and against their source."""

import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from tensorflow.core.example import example_pb2, feature_pb2
from tensorflow.core.framework import tensor_pb2, tensor_shape_pb2, types_pb2
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    input_pb2,
    model_management_pb2,
    model_pb2,
    predict_pb2,
    regression_pb2,
    status_pb2,
)
from tensorflow_serving.config import file_system_storage_path_source_pb2, model_server_config_pb2
from tfs_client import tfs_pb2

from serving import config_files
from tests.conftest import ROOT

ORIGINALS = {
    "TensorShapeProto": tensor_shape_pb2.TensorShapeProto,
    "TensorProto": tensor_pb2.TensorProto,
    "TensorInfo": meta_graph_pb2.TensorInfo,
    "SignatureDef": meta_graph_pb2.SignatureDef,
    "ModelSpec": model_pb2.ModelSpec,
    "PredictRequest": predict_pb2.PredictRequest,
    "PredictResponse": predict_pb2.PredictResponse,
    "GetModelStatusRequest": get_model_status_pb2.GetModelStatusRequest,
    "StatusProto": status_pb2.StatusProto,
    "ModelVersionStatus": get_model_status_pb2.ModelVersionStatus,
    "GetModelStatusResponse": get_model_status_pb2.GetModelStatusResponse,
    "SignatureDefMap": get_model_metadata_pb2.SignatureDefMap,
    "GetModelMetadataRequest": get_model_metadata_pb2.GetModelMetadataRequest,
    "GetModelMetadataResponse": get_model_metadata_pb2.GetModelMetadataResponse,
    "BytesList": feature_pb2.BytesList,
    "FloatList": feature_pb2.FloatList,
    "Int64List": feature_pb2.Int64List,
    "Feature": feature_pb2.Feature,
    "Features": feature_pb2.Features,
    "Example": example_pb2.Example,
    "ExampleList": input_pb2.ExampleList,
    "Input": input_pb2.Input,
    "Class": classification_pb2.Class,
    "Classifications": classification_pb2.Classifications,
    "ClassificationResult": classification_pb2.ClassificationResult,
    "Regression": regression_pb2.Regression,
    "RegressionResult": regression_pb2.RegressionResult,
    "RegressionRequest": regression_pb2.RegressionRequest,
    "RegressionResponse": regression_pb2.RegressionResponse,
    "InferenceTask": inference_pb2.InferenceTask,
    "InferenceResult": inference_pb2.InferenceResult,
    "MultiInferenceRequest": inference_pb2.MultiInferenceRequest,
    "MultiInferenceResponse": inference_pb2.MultiInferenceResponse,
    "ServableVersionPolicy": (
        file_system_storage_path_source_pb2.FileSystemStoragePathSourceConfig.ServableVersionPolicy
    ),
    "ModelConfig": model_server_config_pb2.ModelConfig,
    "ModelConfigList": model_server_config_pb2.ModelConfigList,
    "ModelServerConfig": model_server_config_pb2.ModelServerConfig,
    "ReloadConfigRequest": model_management_pb2.ReloadConfigRequest,
    "ReloadConfigResponse": model_management_pb2.ReloadConfigResponse,
    # tensorflow-serving-api has no such message; the embedded server's was written from its source.
    "BatchingParameters": config_files._classes()["BatchingParameters"],
}
# An enum is an int32 on the wire.
WIRE = {FieldDescriptor.TYPE_ENUM: FieldDescriptor.TYPE_INT32}


def wire_form(descriptor: Descriptor) -> dict[str, tuple[object, ...]]:
    return {
        field.name: (
            field.number,
            WIRE.get(field.type, field.type),
            field.is_repeated,
            field.message_type.name if field.message_type else None,
            choice_of(field),
        )
        for field in descriptor.fields
    }


def choice_of(field: FieldDescriptor) -> str | None:
    """The oneof; of the encodings of a TensorInfo the client knows the name only."""
    oneof = field.containing_oneof
    return oneof.name if oneof and oneof.name != "encoding" else None


def test_every_message_has_an_original():
    assert set(tfs_pb2.DESCRIPTOR.message_types_by_name) == set(ORIGINALS)


@pytest.mark.parametrize("name", ORIGINALS)
def test_fields_are_those_of_the_original(name):
    ours = wire_form(tfs_pb2.DESCRIPTOR.message_types_by_name[name])
    theirs = wire_form(ORIGINALS[name].DESCRIPTOR)
    assert ours == {key: theirs[key] for key in ours}


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (tfs_pb2.DataType, types_pb2.DataType),
        (tfs_pb2.ModelVersionStatus.State, get_model_status_pb2.ModelVersionStatus.State),
    ],
)
def test_enum_values_are_those_of_the_original(ours, theirs):
    for name, number in ours.items():
        assert theirs.Value(name) == number


def test_a_request_is_the_same_bytes():
    def fill(request):
        request.model_spec.name = "m"
        request.model_spec.version.value = 3
        request.model_spec.signature_name = "s"
        request.inputs["x"].dtype = 1
        request.inputs["x"].tensor_shape.dim.add(size=2)
        request.inputs["x"].tensor_content = bytes(8)
        request.output_filter.extend(["a", "b"])
        return request.SerializeToString(deterministic=True)

    assert fill(tfs_pb2.PredictRequest()) == fill(predict_pb2.PredictRequest())


def test_the_generated_files_are_those_of_the_source(tmp_path: Path):
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", "-I.", f"--python_out={tmp_path}",
         f"--pyi_out={tmp_path}", "tfs_client/tfs.proto"],
        cwd=ROOT / "clients", check=True, timeout=60,
    )  # fmt: skip
    for name in ("tfs_pb2.py", "tfs_pb2.pyi"):
        committed = ROOT / "clients" / "tfs_client" / name
        assert (tmp_path / "tfs_client" / name).read_text() == committed.read_text(), "make proto"
