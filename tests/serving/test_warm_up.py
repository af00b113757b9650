import shutil

import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from serving.engine import Servable
from serving.errors import Code, ServingError
from serving.metrics import Metrics
from serving.warm_up import warm_up


def test_warm_up_runs_the_recorded_requests(exported, tmp_path):
    metrics = Metrics()
    warm_up(Servable("googlenet", 1, exported), exported, metrics)
    assert b':model_warmup_latency_count{model_path="' in metrics.page()
    copy = tmp_path / "copy"
    shutil.copytree(exported, copy)
    servable = Servable("googlenet", 1, copy)
    (copy / "assets.extra" / "tf_serving_warmup_requests").write_bytes(b"not a record")
    with pytest.raises(ServingError, match="verify your warmup data is in TFRecord") as caught:
        warm_up(servable, copy, metrics)
    assert caught.value.code is Code.DATA_LOSS
    with tf.io.TFRecordWriter(str(copy / "assets.extra" / "tf_serving_warmup_requests")) as writer:
        writer.write(b"no log")
    with pytest.raises(ServingError, match="Failed to parse warmup record: b'no log' from /"):
        warm_up(servable, copy, metrics)
    (copy / "assets.extra" / "tf_serving_warmup_requests").unlink()
    warm_up(servable, copy, metrics)


def test_warm_up_has_a_limit_and_skips_what_is_no_request(add_version):
    path = add_version(1)
    (path / "assets.extra").mkdir()
    nothing = prediction_log_pb2.PredictionLog().SerializeToString()
    with tf.io.TFRecordWriter(str(path / "assets.extra" / "tf_serving_warmup_requests")) as writer:
        for _ in range(1000):
            writer.write(nothing)
        writer.flush()
        warm_up(Servable("affine", 1, path), path, Metrics())
        writer.write(nothing)
    with pytest.raises(ServingError, match="exceeds the maximum"):
        warm_up(Servable("affine", 1, path), path, Metrics())


def test_what_cannot_be_replayed_is_said_by_its_number(add_version):
    path = add_version(1)
    (path / "assets.extra").mkdir()
    log = prediction_log_pb2.PredictionLog(session_run_log=prediction_log_pb2.SessionRunLog())
    with tf.io.TFRecordWriter(str(path / "assets.extra" / "tf_serving_warmup_requests")) as writer:
        writer.write(log.SerializeToString())
    with pytest.raises(ServingError, match=r"Unsupported log_type for warmup: 5$") as caught:
        warm_up(Servable("affine", 1, path), path, Metrics())
    assert caught.value.code is Code.UNIMPLEMENTED
