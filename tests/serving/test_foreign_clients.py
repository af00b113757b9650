"""Clients that nobody here wrote, from PyPI, each in an environment of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.serving.processes import serving

PREDICT_BY_MIN_TFS_CLIENT = """
import numpy, sys
from min_tfs_client.requests import TensorServingClient
from min_tfs_client.tensors import tensor_proto_to_ndarray
client = TensorServingClient(host="127.0.0.1", port=int(sys.argv[1]), credentials=None)
x = numpy.array([1, 2, 5], numpy.float32)
response = client.predict_request(model_name="affine", input_dict={"x": x})
print(tensor_proto_to_ndarray(response.outputs["y"]).tolist())
"""
# It asks for version 0 unless it is told another, which OpenVINO's server takes for the newest.
PREDICT_BY_OVMSCLIENT = """
import numpy, sys
from ovmsclient import make_grpc_client, make_http_client
x = numpy.array([1, 2, 5], numpy.float32)
for client in (make_grpc_client(f"localhost:{sys.argv[1]}"),
               make_http_client(f"localhost:{sys.argv[2]}")):
    assert client.get_model_status("affine", 1)[1]["state"] == "AVAILABLE"
    assert "DT_FLOAT" in str(client.get_model_metadata("affine", 1))
    print(client.predict({"x": x}, "affine", 1).tolist())
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("packages", "script", "lines"),
    [
        (["min-tfs-client==1.0.2", "protobuf<4"], PREDICT_BY_MIN_TFS_CLIENT, 1),
        (["ovmsclient==2023.1", "protobuf<7"], PREDICT_BY_OVMSCLIENT, 2),
    ],
    ids=["min-tfs-client", "ovmsclient"],
)
def test_foreign_clients_get_right_answers(tmp_path: Path, add_version, packages, script, lines):
    add_version(1, 2.0)
    python = tmp_path / "venv/bin/python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True, timeout=120)
    subprocess.run([python, "-m", "pip", "install", "-q", *packages], check=True, timeout=240)
    base = f"--model_base_path={tmp_path / 'affine'}"
    with serving("--model_name=affine", base, rest=True) as server:
        ports = [str(server.port), str(server.rest_port)]
        done = subprocess.run(
            [python, "-c", script, *ports], check=True, timeout=60, capture_output=True, text=True
        )
    assert done.stdout.splitlines() == ["[3.0, 5.0, 11.0]"] * lines
