"""A version's recorded requests, replayed before it is AVAILABLE, so that no user has to wait.

As TensorFlow Serving does it (servables/tensorflow/saved_model_warmup_util.cc).
"""

import time
from pathlib import Path

import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from serving import tensors
from serving.engine import Servable
from serving.errors import Code, ServingError, invalid_argument, translate
from serving.metrics import Metrics

FILE = "assets.extra/tf_serving_warmup_requests"
MAX_RECORDS = 1000


def warm_up(servable: Servable, path: Path, metrics: Metrics) -> None:
    """Send a servable the requests recorded in its directory, if there are any.

    Raises:
        ServingError, tf.errors.OpError: the file is none, or a recorded request failed.
    """
    file = path / FILE
    if not file.exists():
        return
    records, started = 0, time.perf_counter()
    try:
        recorded = tf.data.TFRecordDataset(str(file))
        untuned = tf.data.Options()
        untuned.autotune.enabled = False  # its thread may sleep on when the last record is read
        for record in recorded.with_options(untuned):
            records += 1
            _replay(servable, _parsed(record.numpy(), file))
            if records > MAX_RECORDS:
                raise invalid_argument(
                    f"Number of warmup records exceeds the maximum ({MAX_RECORDS}) at {file}"
                )
    except tf.errors.DataLossError as error:
        words = "Please verify your warmup data is in TFRecord format."
        raise ServingError(Code.DATA_LOSS, f"{translate(error).message}. {words}") from error
    metrics.warm_up(str(path), "OK", time.perf_counter() - started, records)


def _parsed(record: bytes, file: Path) -> prediction_log_pb2.PredictionLog:
    try:
        return prediction_log_pb2.PredictionLog.FromString(record)
    except Exception as error:  # protobuf's DecodeError differs between its implementations
        raise invalid_argument(f"Failed to parse warmup record: {record!r} from {file}") from error


def _replay(servable: Servable, log: prediction_log_pb2.PredictionLog) -> None:
    kind = log.WhichOneof("log_type")
    if kind == "predict_log":
        request = log.predict_log.request
        signature = request.model_spec.signature_name
        servable.predict(request.inputs, signature, list(request.output_filter))
    elif kind == "classify_log":
        asked = log.classify_log.request
        servable.classify(tensors.examples(asked.input), asked.model_spec.signature_name)
    elif kind == "regress_log":
        asked = log.regress_log.request
        servable.regress(tensors.examples(asked.input), asked.model_spec.signature_name)
    elif kind == "multi_inference_log":
        servable.multi_inference(log.multi_inference_log.request)
    elif kind == "session_run_log":
        number = log.DESCRIPTOR.fields_by_name[kind].number
        raise ServingError(Code.UNIMPLEMENTED, f"Unsupported log_type for warmup: {number}")
