"""A SavedModel in a TensorFlow session, run by tensor names, as TensorFlow Serving runs it.

A session fetches just the outputs that are asked for, holds requests to no shape of the signature,
and gives all its memory back when it is dropped; a restored `tf.function` does none of these.
"""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import config_pb2, meta_graph_pb2, saved_model_pb2
from tensorflow.python.saved_model import loader_impl

from serving.errors import Code, ServingError, first_line, invalid_argument

# A client may filter outputs in any combination; what is compiled for one is kept up to this many.
MAX_COMPILED = 256
# All of a run stays on its caller's thread: handing operations to TensorFlow's pool costs 0.2 ms
# and more a request, and the kernels are parallel in themselves.
ON_CALLERS_THREAD = config_pb2.RunOptions(inter_op_thread_pool=-1)


class Session:
    """One loaded SavedModel.

    Attributes:
        signatures: the signature definitions as saved.
    """

    def __init__(self, path: Path, config: config_pb2.ConfigProto | None = None) -> None:
        """Load it.

        Args:
            path: the SavedModel's directory.
            config: TensorFlow's settings of threads and rewriting.

        Raises:
            ServingError: it is not a SavedModel that this TensorFlow can load.
        """
        self.signatures = _read_signatures(path)
        self._session = tf.compat.v1.Session(graph=tf.Graph(), config=config)
        self._compiled: dict[tuple, _Compiled] = {}
        self._lock = threading.Lock()
        try:
            # Not tf.compat.v1.saved_model.load, which is the same and logs that it is deprecated.
            loader_impl.SavedModelLoader(str(path)).load(
                self._session, [tf.saved_model.SERVING], None
            )
        except tf.errors.OpError as error:
            raise ServingError(Code(error.error_code), error.message) from error
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise ServingError(Code.UNKNOWN, f"cannot load {path}: {first_line(error)}") from error

    def run(self, feeds: dict[str, np.ndarray], fetches: Sequence[str]) -> list[np.ndarray]:
        """Values of the tensors named in `fetches`, given those in `feeds`; thread-safe.

        Raises:
            tf.errors.OpError: what an operation refused.
        """
        names = tuple(sorted(feeds))
        key = (names, tuple(fetches))
        with self._lock:
            compiled = self._compiled.get(key)
            if compiled is None:
                if len(self._compiled) >= MAX_COMPILED:
                    self._compiled.pop(next(iter(self._compiled)))
                compiled = self._compiled[key] = _Compiled(self._session, *key)
        return compiled(*(feeds[name] for name in names))


def compiled(session, feeds: Sequence[str], fetches: Sequence[str]) -> Callable[..., list]:
    """A function of a session's: values to be fed, in their order -> those fetched.

    make_callable, which is public, takes 30 times as long for a small model: it cannot be told
    beforehand to stay on the caller's thread.
    """
    return session._make_callable_from_options(
        config_pb2.CallableOptions(feed=feeds, fetch=fetches, run_options=ON_CALLERS_THREAD)
    )


class _Compiled:
    """Feeds and fetches that the session has pruned and optimised its graph for."""

    def __init__(self, session, feeds: Sequence[str], fetches: Sequence[str]) -> None:
        distinct = list(dict.fromkeys(fetches))  # two outputs may be one tensor
        self._run = compiled(session, feeds, distinct)
        self._order = [distinct.index(name) for name in fetches]

    def __call__(self, *values: np.ndarray) -> list[np.ndarray]:
        try:
            outputs = self._run(*values)
        except UnicodeDecodeError as error:
            # An operation's words, which quote what it was given; the code is lost with them.
            raise invalid_argument(error.object.decode(errors="replace")) from error
        return [_array(outputs[position]) for position in self._order]


def _array(value: np.ndarray | bytes) -> np.ndarray:
    """TensorFlow gives a scalar string as bytes."""
    return np.array(value, object) if isinstance(value, bytes) else value


def _read_signatures(path: Path) -> dict[str, meta_graph_pb2.SignatureDef]:
    """The definitions, read first so that what is no SavedModel is told apart."""
    file = path / "saved_model.pb"
    try:
        saved = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    except OSError as error:
        raise ServingError(
            Code.NOT_FOUND,
            "Specified file path does not appear to contain a SavedModel bundle (should have a "
            f"file called `saved_model.pb`)\nSpecified file path: {path}",
        ) from error
    except Exception as error:  # protobuf's DecodeError differs between its implementations
        raise ServingError(Code.DATA_LOSS, f"Can't parse {file} as binary proto") from error
    for graph in saved.meta_graphs:
        if tf.saved_model.SERVING in graph.meta_info_def.tags:
            return dict(graph.signature_def)
    raise ServingError(Code.NOT_FOUND, f"{path} has no graph with tag {tf.saved_model.SERVING}")
