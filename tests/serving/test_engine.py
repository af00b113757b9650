import ctypes
import gc
import shutil
import time
from concurrent import futures
from pathlib import Path

import numpy as np
import psutil
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import inference_pb2

from serving.batching import BatchingParameters
from serving.engine import Servable, Settings
from serving.errors import Code, ServingError, translate
from serving.metrics import Metrics

ALONE = None
BATCHING = BatchingParameters(max_batch_size=8, batch_timeout_micros=1000)


@pytest.fixture(params=[ALONE, BATCHING], ids=["alone", "batched"])
def affine(request, add_version) -> Servable:
    return Servable("affine", 3, add_version(3, 2.0), Settings(request.param))


X = np.array([1, 2, 5], np.float32)


def test_predict_answers_by_the_signatures_names(affine):
    assert affine.predict({"x": X})["y"].tolist() == [3, 5, 11]
    assert affine.predict({"x": X}, "serving_default")["y"].tolist() == [3, 5, 11]


def test_several_inputs_and_outputs_are_told_apart(affine):
    a, b = np.array([[1, 2], [3, 4]], np.float32), np.array([10, 20])
    outputs = affine.predict({"a": a, "b": b}, "pair")
    assert outputs["sums"].tolist() == [13, 27]
    assert outputs["products"].tolist() == [[10, 20], [60, 80]]
    filtered = affine.predict({"a": a, "b": b}, "pair", ["sums"])
    assert list(filtered) == ["sums"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (({"x": X}, "nope"), Code.FAILED_PRECONDITION, '"nope" not found'),
        (({},), Code.INVALID_ARGUMENT, r"Missing but required: \{x\}"),
        (
            ({"z": X},),
            Code.INVALID_ARGUMENT,
            r"input alias: x\(feed name: serving_default_x:0\) not",
        ),
        (({"x": X, "z": X},), Code.INVALID_ARGUMENT, r"Sent extra: \{z\}"),
        (({"x": X}, "", ["zzz"]), Code.INVALID_ARGUMENT, "alias not found in signature: zzz"),
        (({"x": X}, "", ["y", "y"]), Code.INVALID_ARGUMENT, "duplicate .*: y"),
    ],
)
def test_what_is_not_accepted_is_named(affine, arguments, code, words):
    with pytest.raises(ServingError, match=words) as caught:
        affine.predict(*arguments)
    assert caught.value.code is code


def with_default(tmp_path) -> Servable:
    """y = x * factor + shift, of which factor has a default, 10."""
    module = tf.Module()
    module.call = tf.function(
        lambda x, factor, shift: {"y": x * factor + shift},
        input_signature=[tf.TensorSpec([None], tf.float32, n) for n in ("x", "factor", "shift")],
    )
    tf.saved_model.save(module, str(tmp_path), signatures=module.call)
    file = tmp_path / "saved_model.pb"
    saved = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    signature = saved.meta_graphs[0].signature_def["serving_default"]
    signature.defaults["factor"].CopyFrom(tf.make_tensor_proto([10.0]))
    file.write_bytes(saved.SerializeToString())
    return Servable("scaled", 1, tmp_path)


def test_what_is_not_sent_may_have_a_default(tmp_path):
    servable, one = with_default(tmp_path), np.ones(1, np.float32)
    assert servable.predict({"x": one, "shift": one})["y"].tolist() == [11]
    assert servable.predict({"x": one, "shift": one, "factor": one})["y"].tolist() == [2]
    for inputs, words in (
        ({}, "input alias: shift"),
        ({"x": one}, "input alias: shift"),
        ({"x": one, "zzz": one}, "input alias: shift"),
        ({"x": one, "shift": one, "zzz": one},
         "contains invalid name. Used request inputs: shift,x, request input: shift,x,zzz"),
        ({"x": one, "shift": one, "factor": one, "zzz": one}, "size does not match.*4!=3"),
    ):  # fmt: skip
        with pytest.raises(ServingError, match=words) as caught:
            servable.predict(inputs)
        assert caught.value.code is Code.INVALID_ARGUMENT


def test_outputs_are_looked_for_before_dtypes(affine):
    with pytest.raises(ServingError, match="alias not found in signature: zzz"):
        affine.predict({"x": X.astype(float)}, output_filter=["zzz"])


@pytest.mark.parametrize("batching", [ALONE, BATCHING], ids=["alone", "batched"])
def test_what_took_longer_than_its_deadline_is_no_answer(batching):
    path = Path(__file__).parent / "conformance" / "models" / "slow" / "1"  # a quarter of a second
    slow = Servable("slow", 1, path, Settings(batching))
    slow.predict({"x": X})
    refused = []
    for _ in range(5):  # on a machine that is busy it may pass before the model is asked
        with pytest.raises(ServingError) as caught:
            slow.predict({"x": X}, deadline=time.monotonic() + 0.1)
        refused.append((caught.value.code, caught.value.message))
    assert (Code.DEADLINE_EXCEEDED, "Timed out waiting for notification") in refused


def test_a_wrong_dtype_is_named(add_version):
    path = add_version(3, 2.0)
    for batching, code, words in (
        (ALONE, Code.INVALID_ARGUMENT, r"Expects arg\[0\] to be float but double is provided"),
        (BATCHING, Code.INTERNAL, "Got float and double"),  # as TensorFlow Serving's batches
    ):
        with pytest.raises(ServingError, match=words) as caught:
            Servable("affine", 3, path, Settings(batching)).predict({"x": X.astype(float)})
        assert caught.value.code is code


def test_a_deadline_that_has_passed_is_not_computed(affine):
    with pytest.raises(ServingError, match="deadline passed") as caught:
        affine.predict({"x": X}, deadline=time.monotonic() - 0.001)
    assert caught.value.code is Code.DEADLINE_EXCEEDED
    assert affine.predict({"x": X}, deadline=time.monotonic() + 60)["y"].tolist() == [3, 5, 11]


def test_a_models_own_error_keeps_its_code(affine):
    with pytest.raises((tf.errors.InvalidArgumentError, ServingError)) as caught:
        affine.predict({"a": np.ones((3, 1), np.float32), "b": np.array([1, 2])}, "pair")
    assert "3" in str(caught.value) or "0th-dimension" in str(caught.value)


def test_shapes_are_not_enforced_by_the_server(add_version):
    servable = Servable("affine", 1, add_version(1))
    assert servable.predict({"x": np.ones((2, 2), np.float32)})["y"].tolist() == [[3, 3], [3, 3]]


def test_batching_refuses_scalars(add_version):
    servable = Servable("affine", 1, add_version(1), Settings(BATCHING))
    with pytest.raises(ServingError, match="at least one dimension"):
        servable.predict({"x": np.float32(1)})


def test_requests_that_filter_outputs_are_merged_too(add_version):
    servable = Servable("affine", 1, add_version(1), Settings(BATCHING))
    few, many = (
        {"a": np.ones((rows, 1), np.float32), "b": np.ones(rows, np.int64)} for rows in (8, 20)
    )
    assert servable.predict(few, "pair", ["sums"])["sums"].tolist() == [2] * 8
    for names in ([], ["sums"], ["sums", "products"]):
        with pytest.raises(tf.errors.InvalidArgumentError, match="size 20"):
            servable.predict(many, "pair", names)


def test_multi_inference_is_one_run_of_all_tensors_of_both_signatures():
    path = Path(__file__).parent / "conformance" / "models" / "affine" / "2"
    metrics = Metrics()
    servable = Servable("affine", 2, path, Settings(BATCHING, metrics=metrics))
    request = inference_pb2.MultiInferenceRequest()
    for kind in ("classify", "regress"):
        task = request.tasks.add(method_name=f"tensorflow/serving/{kind}")
        task.model_spec.name, task.model_spec.signature_name = "affine", kind
    for _ in range(8):
        example = request.input.example_list.examples.add()
        example.features.feature["x"].float_list.value.append(2)
    labels, numbers = servable.multi_inference(request)
    assert [row[0].name for row in labels] == ["low"] * 8
    assert numbers == [4] * 8
    page = metrics.page()
    assert b"runtime_latency_count{" not in page
    assert b"wrapped_run_count 1.0" in page
    request.input.example_list.examples.add()
    with pytest.raises(tf.errors.InvalidArgumentError, match="size 9"):
        servable.multi_inference(request)


def test_a_scalar_string_is_an_array_too(tmp_path):
    module = tf.Module()
    module.same = tf.function(
        lambda text: {"text": text}, input_signature=[tf.TensorSpec([], tf.string, "text")]
    )
    tf.saved_model.save(module, str(tmp_path / "1"), signatures=module.same)
    outputs = Servable("same", 1, tmp_path / "1").predict({"text": np.array(b"a", object)})
    assert (outputs["text"].shape, outputs["text"].item()) == ((), b"a")


def test_a_signature_may_be_held_to_its_method(exported):
    servable = Servable("googlenet", 1, exported, Settings(check_method_names=True))
    for call, code in (
        (lambda: servable.predict({}, "__saved_model_init_op"), Code.INTERNAL),
        (lambda: servable.regress([b""], "classify"), Code.INVALID_ARGUMENT),
    ):
        with pytest.raises(ServingError, match="signature method_name to be") as caught:
            call()
        assert caught.value.code is code


def test_two_servables_do_not_share_batches(add_version):
    slow = BatchingParameters(max_batch_size=8, batch_timeout_micros=50_000)
    servables = [Servable("affine", n, add_version(n, float(n)), Settings(slow)) for n in (1, 2, 3)]
    with futures.ThreadPoolExecutor(9) as pool:
        answers = pool.map(lambda s: s.predict({"x": X})["y"].tolist(), servables * 3, timeout=60)
        for servable, values in zip(servables * 3, answers, strict=True):
            assert values == [servable.version * x + 1 for x in (1, 2, 5)]


def test_classify_gives_labels_in_the_models_order(exported):
    servable = Servable("googlenet", 1, exported)
    image = tf.io.encode_png(np.full((28, 28, 3), [230, 30, 20], np.uint8)).numpy()
    feature = tf.train.Feature(bytes_list=tf.train.BytesList(value=[image]))
    example = tf.train.Example(
        features=tf.train.Features(feature={"image/encoded": feature})
    ).SerializeToString()
    rows = servable.classify([example, example], "classify")
    assert len(rows) == 2
    assert {label.name for label in rows[0]} == {"blue", "green", "red"}
    scores = [label.score for label in rows[0]]
    assert scores == sorted(scores, reverse=True)
    assert sum(scores) == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize(
    ("examples", "signature", "words"),
    [
        ([], "classify", "Input is empty"),
        ([b""], "nope", "No signature was found with the name: nope"),
        ([b""], "serving_default", "No classification inputs found"),
    ],
)
def test_classify_refuses(exported, examples, signature, words):
    with pytest.raises(ServingError, match=words) as caught:
        Servable("googlenet", 1, exported).classify(examples, signature)
    assert caught.value.code is Code.INVALID_ARGUMENT


def test_signature_definitions_are_as_saved(exported):
    definitions = Servable("googlenet", 1, exported).signature_definitions()
    assert definitions["classify"].method_name == "tensorflow/serving/classify"
    assert definitions["embed"].inputs["image_bytes"].name == "embed_image_bytes:0"


def test_what_is_no_saved_model_is_refused(tmp_path, exported):
    with pytest.raises(ServingError, match="does not appear to contain a SavedModel"):
        Servable("m", 1, tmp_path)
    (tmp_path / "saved_model.pb").write_bytes(b"\xff\xff broken")
    with pytest.raises(ServingError, match="Can't parse"):
        Servable("m", 1, tmp_path)
    partial = tmp_path / "partial"
    shutil.copytree(exported, partial)
    with (partial / "saved_model.pb").open("r+b") as file:
        file.truncate(file.seek(0, 2) // 2)
    with pytest.raises(ServingError, match="Can't parse"):
        Servable("m", 1, partial)


def test_no_rows_get_no_rows(exported):
    for batching in (ALONE, BATCHING):
        servable = Servable("googlenet", 1, exported, Settings(batching))
        none = servable.predict({"image_bytes": np.array([], object)})
        assert {name: x.shape for name, x in none.items()} == {
            "classes": (0, 3),
            "scores": (0, 3),
            "probabilities": (0, 3),
            "valid": (0,),
        }
        pixels = np.zeros((0, 20, 20, 3), np.uint8)
        assert servable.predict({"images": pixels}, "predict_images")["valid"].shape == (0,)


def test_an_operations_error_is_told_without_the_servers_stack(affine):
    with pytest.raises((ServingError, tf.errors.OpError)) as caught:
        affine.predict({"a": np.ones((2, 3, 3), np.float32), "b": np.array([1, 2])}, "pair")
    failure = translate(caught.value)
    assert failure.code is Code.INVALID_ARGUMENT
    assert "\n" not in failure.message
    for noise in ("File", "Graph execution", "[Op:", "stack trace"):
        assert noise not in failure.message


def test_unloaded_versions_and_new_shapes_leave_no_memory_behind(exported):
    def use_and_forget(sizes: range) -> None:
        servable = Servable("googlenet", 1, exported, Settings(BATCHING))
        for size in sizes:
            servable.predict({"images": np.zeros((1, size, 9, 3), np.uint8)}, "predict_images")
        del servable
        gc.collect()

    def resident() -> int:
        ctypes.CDLL(None).malloc_trim(0)  # or what the allocator keeps would vary by 200 MB
        return psutil.Process().memory_info().rss

    threads = psutil.Process().num_threads()
    for _ in range(3):
        use_and_forget(range(10, 12))
    before = resident()
    use_and_forget(range(20, 30))
    for _ in range(9):
        use_and_forget(range(10, 12))
    # Ten more versions: one copy of the weights has 24 MB; a version that stays takes several
    # hundred.
    assert resident() - before < 300e6
    assert psutil.Process().num_threads() <= threads + 20
