"""One loaded version of a model: predict, classify, metadata. Knows no transport.

The rules of what is accepted, and the words of what is refused, are TensorFlow Serving's
(tensorflow_serving/servables/tensorflow/{predict_util,classifier}.cc).
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2
from tensorflow_serving.apis import prediction_log_pb2

from serving import tensors
from serving.batching import Batcher, BatchingParameters, Function, run
from serving.errors import Code, ServingError, first_line, invalid_argument

DEFAULT_SIGNATURE = "serving_default"
CLASSIFY_INPUT, CLASSES, SCORES = "inputs", "classes", "scores"
WARM_UP_FILE = "assets.extra/tf_serving_warmup_requests"
MAX_WARM_UP_RECORDS = 1000


class Label(NamedTuple):
    """A class and how sure the model is of it."""

    name: str
    score: float


Execute = Callable[[list[tf.Tensor]], list[tf.Tensor]]


class _Signature:
    """One signature: its definition, and a function on tensors in the order of the input names."""

    def __init__(self, definition: meta_graph_pb2.SignatureDef, execute: Execute) -> None:
        self.definition = definition
        self.input_names = sorted(definition.inputs)
        self.output_names = sorted(definition.outputs)
        self._execute = execute

    def __call__(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        self._check(inputs)
        outputs = self._execute([self._tensor(name, inputs[name]) for name in self.input_names])
        return {name: x.numpy() for name, x in zip(self.output_names, outputs, strict=True)}

    def _check(self, inputs: dict[str, np.ndarray]) -> None:
        expected, sent = set(self.input_names), set(inputs)
        if expected != sent:
            raise invalid_argument(
                f"input size does not match signature: {len(sent)}!={len(expected)} "
                f"len({_braces(sent)}) != len({_braces(expected)}). Sent extra: "
                f"{_braces(sent - expected)}. Missing but required: {_braces(expected - sent)}."
            )

    def _tensor(self, name: str, value: np.ndarray) -> tf.Tensor:
        expected = tf.as_dtype(self.definition.inputs[name].dtype)
        given = tf.string if value.dtype == object else tf.as_dtype(value.dtype)
        if given != expected:
            raise invalid_argument(
                f"Expects input {name} to be {expected.name} but {given.name} is provided"
            )
        return tf.constant(value, expected)


def _braces(names: set[str]) -> str:
    return "{" + ",".join(sorted(names)) + "}"


class Servable:
    """A loaded version of a model."""

    def __init__(
        self, name: str, version: int, path: Path, batching: BatchingParameters | None = None
    ) -> None:
        """Load a SavedModel.

        Args:
            name: the model's name.
            version: the version's number.
            path: the version's directory.
            batching: merge concurrent requests by these; None runs each alone.

        Raises:
            ServingError: it is not a SavedModel that this TensorFlow can load.
        """
        self.name = name
        self.version = version
        self._definitions = _read_signatures(path)
        try:
            # Held on to: the signatures' variables live as long as it does.
            self._model = tf.saved_model.load(str(path), tags=[tf.saved_model.SERVING])
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise ServingError(Code.UNKNOWN, f"cannot load {path}: {first_line(error)}") from error
        self._signatures = {
            key: _Signature(self._definitions[key], _executor(function, batching))
            for key, function in self._model.signatures.items()
        }

    def signature_definitions(self) -> dict[str, meta_graph_pb2.SignatureDef]:
        """Every signature's definition, as saved."""
        return dict(self._definitions)

    def predict(
        self,
        inputs: dict[str, np.ndarray],
        signature: str = "",
        output_filter: Sequence[str] = (),
    ) -> dict[str, np.ndarray]:
        """Run a signature.

        Args:
            inputs: by the signature's input names; strings as object arrays of bytes.
            signature: its name; empty for `serving_default`.
            output_filter: the outputs wanted; none for all.

        Raises:
            ServingError: unknown signature, inputs or outputs, or wrong dtypes.
            tf.errors.OpError: what the model itself refused.
        """
        key = signature or DEFAULT_SIGNATURE
        if key not in self._signatures:
            raise ServingError(
                Code.FAILED_PRECONDITION, f'Serving signature key "{key}" not found.'
            )
        _check_filter(output_filter, self._signatures[key].output_names)
        outputs = self._signatures[key](inputs)
        return {name: outputs[name] for name in output_filter or outputs}

    def classify(self, examples: Sequence[bytes], signature: str = "") -> list[list[Label]]:
        """Classify serialized tf.Examples; the labels of each in the model's order.

        Raises:
            ServingError: no examples, or the signature is not one for classification.
            tf.errors.OpError: what the model itself refused.
        """
        key = signature or DEFAULT_SIGNATURE
        if key not in self._signatures:
            raise invalid_argument(f"No signature was found with the name: {key}")
        if not examples:
            raise invalid_argument("Input is empty.")
        call = self._signatures[key]
        if call.input_names != [CLASSIFY_INPUT]:
            raise invalid_argument(
                f"No classification inputs found in SignatureDef: {call.definition}"
            )
        if not set(call.output_names) & {CLASSES, SCORES}:
            raise invalid_argument(
                f"Expected classification signature outputs to contain {CLASSES} or {SCORES}: "
                f"{call.definition}"
            )
        outputs = call({CLASSIFY_INPUT: np.array(examples, object)})
        classes, scores = outputs.get(CLASSES), outputs.get(SCORES)
        return [_labels(classes, scores, row) for row in range(len(examples))]

    def warm_up(self, path: Path) -> None:
        """Replay the requests recorded with the version, so that no user has to wait.

        Raises:
            ServingError, tf.errors.OpError: a recorded request failed.
        """
        file = path / WARM_UP_FILE
        if not file.exists():
            return
        for record in tf.data.TFRecordDataset(str(file)).take(MAX_WARM_UP_RECORDS):
            log = prediction_log_pb2.PredictionLog.FromString(record.numpy())
            if log.HasField("predict_log"):
                request = log.predict_log.request
                inputs = {name: tensors.from_proto(name, x) for name, x in request.inputs.items()}
                self.predict(inputs, request.model_spec.signature_name)
            elif log.HasField("classify_log"):
                asked = log.classify_log.request
                examples = [x.SerializeToString() for x in asked.input.example_list.examples]
                self.classify(examples, asked.model_spec.signature_name)


def _check_filter(wanted: Sequence[str], known: list[str]) -> None:
    for position, name in enumerate(wanted):
        if name not in known:
            raise invalid_argument(
                f"output tensor alias not found in signature: {name} "
                f"Outputs expected to be in the set {_braces(set(known))}."
            )
        if name in wanted[:position]:
            raise invalid_argument(f"duplicate output tensor alias: {name}")


def _labels(classes: np.ndarray | None, scores: np.ndarray | None, row: int) -> list[Label]:
    """One example's labels; a model may give names only or scores only."""
    count = (classes if classes is not None else scores).shape[1]  # type: ignore[union-attr]
    names = [name.decode() for name in classes[row]] if classes is not None else [""] * count
    values = scores[row].tolist() if scores is not None else [0.0] * count
    return [Label(name, value) for name, value in zip(names, values, strict=True)]


def _executor(function: Function, batching: BatchingParameters | None) -> Execute:
    if batching is None:
        return lambda arguments: run(function, arguments)
    batcher = Batcher(function, batching)

    def execute(arguments: list[tf.Tensor]) -> list[tf.Tensor]:
        if any(not argument.shape.rank for argument in arguments):
            raise invalid_argument("Batching Run() input tensors must have at least one dimension")
        if len({argument.shape[0] for argument in arguments}) > 1:
            raise invalid_argument(
                "Batching Run() input tensors must have equal 0th-dimension size"
            )
        if arguments and not arguments[0].shape[0]:
            return run(function, arguments)  # no rows, nothing to merge
        return batcher(arguments)

    return execute


def _read_signatures(path: Path) -> dict[str, meta_graph_pb2.SignatureDef]:
    """The definitions as saved; loading and saving again would rename their tensors."""
    file = path / "saved_model.pb"
    try:
        saved = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    except OSError as error:
        raise ServingError(Code.NOT_FOUND, f"Could not find SavedModel at {path}") from error
    except Exception as error:  # protobuf's DecodeError differs between its implementations
        raise ServingError(Code.DATA_LOSS, f"Can't parse {file} as a SavedModel") from error
    for graph in saved.meta_graphs:
        if tf.saved_model.SERVING in graph.meta_info_def.tags:
            return dict(graph.signature_def)
    raise ServingError(Code.NOT_FOUND, f"{path} has no graph with tag {tf.saved_model.SERVING}")
