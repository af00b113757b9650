"""Send what a case says, and tell how the answer differs from the recorded one."""

import base64
import gzip
import http.client
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
from google.protobuf import json_format
from grpc_health.v1 import health_pb2
from prometheus_client.parser import text_string_to_metric_families
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    predict_pb2,
    regression_pb2,
)

from tests.serving.conformance.compare import (
    TOLERANCE,
    body_differences,
    differences,
    lacking,
    plain,
)
from tests.serving.conformance.servers import Server

Case = dict[str, Any]

MESSAGES = {
    "Predict": (predict_pb2.PredictRequest, predict_pb2.PredictResponse),
    "Classify": (
        classification_pb2.ClassificationRequest,
        classification_pb2.ClassificationResponse,
    ),
    "Regress": (regression_pb2.RegressionRequest, regression_pb2.RegressionResponse),
    "MultiInference": (inference_pb2.MultiInferenceRequest, inference_pb2.MultiInferenceResponse),
    "GetModelMetadata": (
        get_model_metadata_pb2.GetModelMetadataRequest,
        get_model_metadata_pb2.GetModelMetadataResponse,
    ),
    "GetModelStatus": (
        get_model_status_pb2.GetModelStatusRequest,
        get_model_status_pb2.GetModelStatusResponse,
    ),
    "HandleReloadConfigRequest": (
        model_management_pb2.ReloadConfigRequest,
        model_management_pb2.ReloadConfigResponse,
    ),
    "Check": (health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse),
}
METRICS_PATH = "/monitoring/prometheus/metrics"
REQUESTS = ":tensorflow:serving:request_count"
SETTLE_SECONDS = 0.1  # some counters rise just after the reply


def run(server: Server, case: Case) -> list[str]:
    """How a server differs from TensorFlow Serving in a case; nothing, if it does not."""
    return list(_TRANSPORTS[case["transport"]](server, case))


def _grpc(server: Server, case: Case) -> Iterator[str]:
    want, rule = case["expect"], case.get("compare", {})
    code, message, response = _call(server, case)
    if code not in [want["code"], *rule.get("code_also", [])]:
        yield f"code {code} ({message[:300]}), want {want['code']} ({want.get('message', '')})"
    elif code != "OK":
        yield from lacking(rule.get("words", []), message)
    elif "fill" in want:
        fill = want["fill"]
        output = predict_pb2.PredictResponse.FromString(response).outputs[fill["output"]]
        yield from differences([fill["value"]] * fill["count"], plain(output)[2], TOLERANCE)
    elif rule.get("response") != "ignore":
        kind = MESSAGES[case["method"].rpartition("/")[2]][1]
        encoding, tolerance = rule.get("encoding", False), rule.get("tolerance", TOLERANCE)
        recorded, got = (
            kind.FromString(x) for x in (base64.b64decode(want["response_b64"]), response)
        )
        yield from differences(plain(recorded, encoding), plain(got, encoding), tolerance)
        yield from lacking(rule.get("words", []), str(got))


def _call(server: Server, case: Case) -> tuple[str, str, bytes]:
    """Code, message and serialized response."""
    compression = {"gzip": grpc.Compression.Gzip, "deflate": grpc.Compression.Deflate}
    try:
        response = server.channel.unary_unary(case["method"])(
            _request(server, case),
            timeout=case.get("timeout_s", 15.0),
            compression=compression.get(case.get("compression")),
        )
    except grpc.RpcError as error:
        return error.code().name, error.details() or "", b""
    return "OK", "", response


def _request(server: Server, case: Case) -> bytes:
    if "request_gen" in case:
        return _large(case["request_gen"])
    if case.get("request_template"):
        kind = MESSAGES[case["method"].rpartition("/")[2]][0]
        text = server.fill(json.dumps(case["request"]))
        return json_format.Parse(text, kind()).SerializeToString()
    return base64.b64decode(case["request_b64"])


def _large(made: dict[str, Any]) -> bytes:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = made["model"]
    tensor = request.inputs[made["input"]]
    tensor.dtype = 1
    tensor.tensor_shape.dim.add().size = made["count"]
    tensor.tensor_content = np.full(made["count"], made["value"], np.float32).tobytes()
    return request.SerializeToString()


def _rest(server: Server, case: Case) -> Iterator[str]:
    want, rule = case["expect"], case.get("compare", {})
    status, headers, body = _http(server, case["request"], case.get("timeout_s", 15.0))
    if status != want["status"]:
        yield f"status {status} ({body[:300]}), want {want['status']} ({want['body'][:300]})"
        return
    for key, value in want.get("headers", {}).items():
        got = headers.get(key)
        if (got.split(";")[0].strip() if got and value else got) != value:
            yield f"header {key}: {got!r}, want {value!r}"
    yield from body_differences(want["body"], body, rule)


def _http(server: Server, request: Case, timeout: float) -> tuple[int, dict[str, str], str]:
    """Status, headers and body; status 0 if nothing answers."""
    body = _body(server, request)
    headers = {key.lower(): value for key, value in request.get("headers", {}).items()}
    if body is not None:
        headers.setdefault("content-length", str(len(body)))
    connection = http.client.HTTPConnection("127.0.0.1", server.rest_port, timeout=timeout)
    try:
        connection.putrequest(request["method"], request["path"], skip_accept_encoding=True)
        for key, value in headers.items():
            connection.putheader(key, value)
        connection.endheaders(body)
        response = connection.getresponse()
        data = response.read()
    except (OSError, http.client.HTTPException) as error:
        return 0, {}, repr(error)
    finally:
        connection.close()
    got = {key.lower(): value for key, value in response.getheaders()}
    if got.get("content-encoding") == "gzip":
        data = gzip.decompress(data)
    return response.status, got, data.decode("utf-8", "surrogateescape")


def _body(server: Server, request: Case) -> bytes | None:
    if "body_b64" in request:
        body = base64.b64decode(request["body_b64"])
    elif request.get("body") is None:
        return None
    else:
        body = server.fill(request["body"]).encode()
    return gzip.compress(body, mtime=0) if request.get("gzip") else body


def _metrics(server: Server, case: Case) -> Iterator[str]:
    before = _scrape(server)[1]
    for step in case.get("steps", []):
        (_call if step["transport"] == "grpc" else lambda s, c: _http(s, c["request"], 15.0))(
            server, step
        )
    time.sleep(SETTLE_SECONDS)
    families, after = _scrape(server)
    for name, entry in case["expect"].get("families", {}).items():
        kind, labels = families.get(name, ("missing", []))
        if kind != entry["type"] or any(wanted not in labels for wanted in entry["labels"]):
            yield f"{name}: {kind} {labels}, want {entry}"
    if "increases" in case["expect"]:
        rises = {
            (rise["metric"], tuple(sorted(rise["labels"].items()))): rise["by"]
            for rise in case["expect"]["increases"]
        }
        moved = {key: after[key] - before.get(key, 0.0) for key in after}
        for key in rises.keys() | {k for k in moved if k[0] == REQUESTS and moved[k]}:
            if moved.get(key, 0.0) != rises.get(key, 0.0):
                yield f"{key} rose by {moved.get(key)}, want {rises.get(key, 0.0)}"


def _scrape(server: Server):
    """Types and labels of the families that have samples, and the values of all samples."""
    page = _http(server, {"method": "GET", "path": METRICS_PATH}, 15.0)[2]
    families, samples = {}, {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            labels = sorted(key for key in sample.labels if key != "le")
            name = family.name if f"# TYPE {family.name} " in page else f"{family.name}_total"
            known = families.setdefault(name, (family.type, []))[1]
            if labels not in known:
                known.append(labels)
            written = _written_name(page, sample.name)
            samples[written, tuple(sorted(sample.labels.items()))] = sample.value
    return families, samples


def _written_name(page: str, name: str) -> str:
    """The parser ends every counter's name in `_total`; here it is as the page has it."""
    return name if f"\n{name}" in page else name.removesuffix("_total")


def _steps(server: Server, case: Case) -> Iterator[str]:
    for number, step in enumerate(case["steps"]):
        if "do" in step:
            _ACTIONS[step["do"]](server, step)
            continue
        deadline = time.monotonic() + step.get("within_s", 0)
        while (found := run(server, step)) and time.monotonic() < deadline:
            time.sleep(0.1)
        if found:
            yield from (f"step {number}: {difference}" for difference in found)
            return


def _add_version(server: Server, step: Case) -> None:
    incoming = server.folder / "incoming"
    shutil.copytree(server.models / step["from"], incoming)
    (server.models / step["to"]).parent.mkdir(parents=True, exist_ok=True)
    incoming.rename(server.models / step["to"])


def _remove(server: Server, step: Case) -> None:
    gone = server.folder / f"gone-{time.monotonic_ns()}"
    os.rename(server.models / step["path"], gone)
    shutil.rmtree(gone)


_TRANSPORTS: dict[str, Callable[[Server, Case], Iterator[str]]] = {
    "grpc": _grpc,
    "rest": _rest,
    "metrics": _metrics,
    "steps": _steps,
}
_ACTIONS: dict[str, Callable[[Server, Case], None]] = {
    "add_version": _add_version,
    "remove": _remove,
    "mkdir": lambda server, step: (server.models / step["path"]).mkdir(parents=True, exist_ok=True),
    "write": lambda server, step: server.write(step["name"], step["text"]),
    "sleep": lambda server, step: time.sleep(step["s"]),
}
