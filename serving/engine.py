"""One loaded version of a model: predict, classify, regress, metadata. Knows no transport.

The rules of what is accepted, and the words of what is refused, are TensorFlow Serving's
(tensorflow_serving/servables/tensorflow/{predict_util,classifier,regressor}.cc).
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tensorflow.core.framework import tensor_pb2, types_pb2
from tensorflow.core.protobuf import config_pb2, meta_graph_pb2

from serving import tensors
from serving.batching import Batcher, BatchingParameters
from serving.errors import (
    Code,
    ServingError,
    failed_precondition,
    invalid_argument,
)
from serving.metrics import Metrics
from serving.session import Session
from serving.workers import Computation, aside

DEFAULT_SIGNATURE = "serving_default"
INPUTS, OUTPUTS, CLASSES, SCORES = "inputs", "outputs", "classes", "scores"
PREDICT, CLASSIFY, REGRESS = (
    f"tensorflow/serving/{method}" for method in ("predict", "classify", "regress")
)


class Label(NamedTuple):
    """A class and how sure the model is of it."""

    name: str
    score: float


@dataclass(frozen=True)
class Settings:
    """What all servables of a server have in common.

    Attributes:
        batching: merge concurrent requests by these; None runs each alone.
        session: TensorFlow's settings of threads and rewriting.
        check_method_names: hold a signature to the method it was saved for.
        metrics: counted into.
    """

    batching: BatchingParameters | None = None
    session: config_pb2.ConfigProto | None = None
    check_method_names: bool = False
    metrics: Metrics | None = None


class _Input(NamedTuple):
    """An input of a signature: its alias, its tensor's name, its dtype as a number."""

    alias: str
    tensor: str
    dtype: int


class _Signature:
    """One signature, as requests need it: inputs and outputs in the order of their aliases."""

    def __init__(self, definition: meta_graph_pb2.SignatureDef) -> None:
        self.definition = definition
        self.inputs = [
            _Input(alias, info.name, info.dtype)
            for alias, info in sorted(definition.inputs.items())
        ]
        self.outputs = {alias: info.name for alias, info in sorted(definition.outputs.items())}
        self.defaults = {
            alias: tensors.from_proto(alias, proto) for alias, proto in definition.defaults.items()
        }


@dataclass(frozen=True)
class _Question:
    """What is asked of a signature that takes tf.Examples: its tensors, and how they are read."""

    input: str
    outputs: dict[str, str]  # by alias
    read: Callable[[dict[str, np.ndarray], int], list]


class Servable:
    """A loaded version of a model."""

    def __init__(
        self,
        name: str,
        version: int,
        path: Path,
        settings: Settings = Settings(),
    ) -> None:
        """Load a SavedModel.

        Args:
            name: the model's name.
            version: the version's number.
            path: the version's directory.
            settings: the server's.

        Raises:
            ServingError: it is not a SavedModel that this TensorFlow can load.
        """
        self.name = name
        self.version = version
        self._metrics = settings.metrics or Metrics()
        self._check_method_names = settings.check_method_names
        session = Session(path, settings.session)
        self._signatures = {key: _Signature(x) for key, x in session.signatures.items()}
        self._session_run = session.run
        self._batcher = (
            Batcher(session.run, settings.batching, self._metrics) if settings.batching else None
        )
        self._computation = Computation()

    def signature_definitions(self) -> dict[str, meta_graph_pb2.SignatureDef]:
        """Every signature's definition, as saved."""
        return {key: signature.definition for key, signature in self._signatures.items()}

    def predict(
        self,
        inputs: Mapping[str, np.ndarray | tensor_pb2.TensorProto],
        signature: str = "",
        output_filter: Sequence[str] = (),
        deadline: float | None = None,
    ) -> dict[str, np.ndarray]:
        """Run a signature.

        Args:
            inputs: by the signature's input names, as messages or arrays; of these strings are
                object arrays of bytes.
            signature: its name; empty for `serving_default`.
            output_filter: the outputs wanted; none for all.
            deadline: by time.monotonic(); what has not begun by then is not computed, and what took
                longer is no answer.

        Raises:
            ServingError: unknown signature, inputs or outputs, or wrong dtypes.
            tf.errors.OpError: what the model itself refused.
        """
        key = signature or DEFAULT_SIGNATURE
        if key not in self._signatures:
            raise failed_precondition(f'Serving signature key "{key}" not found.')
        called = self._signatures[key]
        self._check_method(called, "prediction", Code.INTERNAL, PREDICT, CLASSIFY, REGRESS)
        values = _values(called, inputs)
        _check_filter(output_filter, called.outputs)
        feeds = self._feeds(called, values)
        names = output_filter or called.outputs
        fetches = [called.outputs[name] for name in names]
        with self._metrics.runtime(self.name, "Predict"):
            outputs = self._execute(feeds, fetches, deadline)
        return dict(zip(names, outputs, strict=True))

    def classify(
        self, examples: Sequence[bytes], signature: str = "", deadline: float | None = None
    ) -> list[list[Label]]:
        """Classify serialized tf.Examples; the labels of each in the model's order.

        Raises:
            ServingError: no examples, or the signature is not one for classification.
            tf.errors.OpError: what the model itself refused.
        """
        question = self._classification(signature)
        with self._metrics.runtime(self.name, "Classify"):
            (labels,) = self._ask([question], examples, deadline)
        return labels

    def regress(
        self, examples: Sequence[bytes], signature: str = "", deadline: float | None = None
    ) -> list[float]:
        """A number for each serialized tf.Example.

        Raises:
            ServingError: no examples, or the signature is not one for regression.
            tf.errors.OpError: what the model itself refused.
        """
        question = self._regression(signature)
        with self._metrics.runtime(self.name, "Regress"):
            (values,) = self._ask([question], examples, deadline)
        return values

    def multi_inference(self, request, deadline: float | None = None) -> list:
        """The answer of each task of a MultiInferenceRequest, all in one run: labels or numbers.

        Raises:
            ServingError: no examples, an unknown signature or method, or one asked for twice.
            tf.errors.OpError: what the model itself refused.
        """
        examples = tensors.examples(request.input)
        asking = {CLASSIFY: self._classification, REGRESS: self._regression}
        questions: dict[str, _Question] = {}
        for task in request.tasks:
            signature = task.model_spec.signature_name or DEFAULT_SIGNATURE
            if not task.model_spec.name:
                raise invalid_argument("Found ModelSpec with an empty model name.")
            if task.model_spec.name != request.tasks[0].model_spec.name:
                raise invalid_argument(
                    "All ModelSpecs in a MultiInferenceRequest must access the same model name."
                )
            if signature in questions:
                raise invalid_argument(f"Duplicate evaluation of signature: {signature}")
            if signature not in self._signatures:
                raise invalid_argument(f"Requested signature not found in model graph: {signature}")
            if task.method_name not in asking:
                raise ServingError(
                    Code.UNIMPLEMENTED, f"Unsupported signature method_name: {task.method_name}"
                )
            questions[signature] = asking[task.method_name](signature)
        answers = self._ask(list(questions.values()), examples, deadline)
        self._metrics.examples(self.name, len(examples))
        return answers

    def _execute(
        self, feeds: dict[str, np.ndarray], fetches: list[str], deadline: float | None
    ) -> list[np.ndarray]:
        if deadline is not None and time.monotonic() >= deadline:
            raise ServingError(Code.DEADLINE_EXCEEDED, "the deadline passed before it was computed")
        if self._batcher:
            with aside():
                outputs = self._batcher(feeds, fetches, deadline)
        else:
            with self._computation.once():
                outputs = self._session_run(feeds, fetches)
        if deadline is not None and time.monotonic() >= deadline:
            raise ServingError(Code.DEADLINE_EXCEEDED, "Timed out waiting for notification")
        return outputs

    def _feeds(self, signature: _Signature, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Values by tensor name."""
        for position, (alias, _, dtype) in enumerate(signature.inputs):
            self._check_dtype(position, values[alias], dtype)
        return {tensor: values[alias] for alias, tensor, _ in signature.inputs}

    def _check_dtype(self, position: int, value: np.ndarray, expected: int) -> None:
        given = tensors.dtype_of(value)
        if given == expected:
            return
        names = [types_pb2.DataType.Name(dtype)[3:].lower() for dtype in (expected, given)]
        if self._batcher:  # TensorFlow Serving finds out when it merges the batch
            raise ServingError(
                Code.INTERNAL,
                "Tensor concat operation failed: INVALID_ARGUMENT: Cannot concatenate tensors that "
                f"have different data types. Got {names[0]} and {names[1]}.",
            )
        raise invalid_argument(
            f"Expects arg[{position}] to be {names[0]} but {names[1]} is provided"
        )

    def _check_method(self, signature: _Signature, what: str, code: Code, *allowed: str) -> None:
        name = signature.definition.method_name
        if self._check_method_names and name not in allowed:
            raise ServingError(
                code,
                f"Expected {what} signature method_name to be {' or '.join(allowed)}. Was: {name}",
            )

    def _example_signature(self, name: str, what: str, method: str) -> _Signature:
        """A signature that takes tf.Examples."""
        key = name or DEFAULT_SIGNATURE
        if key not in self._signatures:
            raise invalid_argument(f"No signature was found with the name: {key}")
        signature = self._signatures[key]
        self._check_method(signature, what, Code.INVALID_ARGUMENT, method)
        if len(signature.inputs) != 1:
            raise invalid_argument(f"Expected one input Tensor, not {len(signature.inputs)}.")
        if signature.inputs[0].alias != INPUTS:
            raise invalid_argument(
                f"No {what} inputs found in SignatureDef: {signature.definition}"
            )
        return signature

    def _classification(self, signature: str) -> _Question:
        called = self._example_signature(signature, "classification", CLASSIFY)
        if not 1 <= len(called.outputs) <= 2:
            raise invalid_argument(
                f"Expected one or two output Tensors, found {len(called.outputs)}"
            )
        wanted = [name for name in (CLASSES, SCORES) if name in called.outputs]
        if not wanted:
            raise invalid_argument(
                "Expected classification signature outputs to contain at least one of "
                f'"{CLASSES}" or "{SCORES}". Signature was: {called.definition}'
            )
        outputs = {name: called.outputs[name] for name in wanted}
        return _Question(called.inputs[0].tensor, outputs, _read_labels)

    def _regression(self, signature: str) -> _Question:
        called = self._example_signature(signature, "regression", REGRESS)
        if len(called.outputs) != 1:
            raise invalid_argument("Expected one output Tensor.")
        if OUTPUTS not in called.outputs:
            raise invalid_argument(
                f"No regression outputs found in SignatureDef: {called.definition}"
            )
        return _Question(called.inputs[0].tensor, called.outputs, _read_numbers)

    def _ask(
        self, questions: Sequence[_Question], examples: Sequence[bytes], deadline: float | None
    ) -> list[list]:
        """The answer to each of the questions, all in one run."""
        if not examples:
            raise invalid_argument("Input is empty.")
        feeds = {question.input: np.array(examples, object) for question in questions}
        fetches = list(
            dict.fromkeys(x for question in questions for x in question.outputs.values())
        )
        values = dict(zip(fetches, self._execute(feeds, fetches, deadline), strict=True))
        return [
            question.read({name: values[x] for name, x in question.outputs.items()}, len(examples))
            for question in questions
        ]


def _values(
    signature: _Signature, inputs: Mapping[str, np.ndarray | tensor_pb2.TensorProto]
) -> dict[str, np.ndarray]:
    """Values by alias, with the signature's defaults for what is not sent."""
    expected, defaults = signature.inputs, signature.defaults
    missing = len(expected) - len(inputs)
    if missing < 0 or (missing and not defaults):
        raise _wrong_inputs(set(inputs), {x.alias for x in expected})
    values = {}
    for alias, tensor, _ in expected:
        if alias in inputs:
            value = inputs[alias]
            is_message = isinstance(value, tensor_pb2.TensorProto)
            values[alias] = tensors.from_proto(alias, value) if is_message else value
        elif alias in defaults:
            values[alias] = defaults[alias]
        else:
            raise invalid_argument(
                f"Signature input alias: {alias}(feed name: {tensor}) not found in request and "
                f"no default value provided. Inputs expected to be in the request "
                f"{_braces(inputs)}, or default input alias set: {','.join(sorted(defaults))}"
            )
    if not inputs.keys() <= values.keys():
        raise invalid_argument(
            f"Inputs contains invalid name. Used request inputs: "
            f"{','.join(sorted(inputs.keys() & values.keys()))}, request input: "
            f"{','.join(sorted(inputs))}"
        )
    return values


def _wrong_inputs(sent: set[str], expected: set[str]) -> ServingError:
    return invalid_argument(
        f"input size does not match signature: {len(sent)}!={len(expected)} "
        f"len({_braces(sent)}) != len({_braces(expected)}). Sent extra: "
        f"{_braces(sent - expected)}. Missing but required: {_braces(expected - sent)}."
    )


def _braces(names) -> str:
    return "{" + ",".join(sorted(names)) + "}"


def _check_filter(wanted: Sequence[str], known: Iterable[str]) -> None:
    for position, name in enumerate(wanted):
        if name not in known:
            raise invalid_argument(
                f"output tensor alias not found in signature: {name} "
                f"Outputs expected to be in the set {_braces(known)}."
            )
        if name in wanted[:position]:
            raise invalid_argument(f"duplicate output tensor alias: {name}")


def _check_classification(name: str, values: np.ndarray, dtype: np.dtype, rows: int) -> None:
    if values.dtype != dtype:
        raise invalid_argument(f"Expected {name} Tensor of {dtype}. Got: {values.dtype}")
    if values.ndim != 2:
        raise invalid_argument(
            f"Expected Tensor shape: [batch_size num_classes] but got {list(values.shape)}"
        )
    if len(values) != rows:
        raise invalid_argument(f"Expected {name} output batch size of {rows}. Got: {len(values)}")


def _read_labels(outputs: dict[str, np.ndarray], rows: int) -> list[list[Label]]:
    for name, kind in ((CLASSES, object), (SCORES, np.float32)):
        if name in outputs:
            _check_classification(name, outputs[name], np.dtype(kind), rows)
    classes, scores = outputs.get(CLASSES), outputs.get(SCORES)
    return [_labels(classes, scores, row) for row in range(rows)]


def _labels(classes: np.ndarray | None, scores: np.ndarray | None, row: int) -> list[Label]:
    """One example's labels; a model may give names only or scores only."""
    count = (classes if classes is not None else scores).shape[1]  # type: ignore[union-attr]
    text = [] if classes is None else [x.decode("utf-8", "surrogateescape") for x in classes[row]]
    names = text or [""] * count
    values = scores[row].tolist() if scores is not None else [0.0] * count
    if len(names) != len(values):
        raise invalid_argument("Tensors class and score should match in dimension 1")
    return [Label(name, value) for name, value in zip(names, values, strict=True)]


def _read_numbers(outputs: dict[str, np.ndarray], rows: int) -> list[float]:
    values = outputs[OUTPUTS]
    if values.shape not in ((rows,), (rows, 1)):
        shape = ",".join(map(str, values.shape))
        raise invalid_argument(
            "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but "
            f"got [{shape}]"
        )
    if values.dtype != np.float32:
        raise invalid_argument(f"Expected output Tensor of DT_FLOAT. Got: {values.dtype}")
    return values.ravel().tolist()
