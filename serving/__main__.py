"""The embedded server's command line: tensorflow_model_server's own flag names.

    python -m serving --port=8500 --model_name=googlenet --model_base_path=models/googlenet

GoogLeNet is available after some five seconds. SIGTERM and Ctrl-C finish what is running; the exit
code is 0 then, and 2 for a flag or file that the server cannot start with.
"""

import argparse
import functools
import logging
import os
import signal
import sys
import threading
from pathlib import Path
from typing import NoReturn

# TensorFlow reads these when it is imported. The int8 convolutions exist in oneDNN only.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

GRACE_SECONDS = 30
# Waiting in the batch scheduler costs a thread and no CPU; TensorFlow Serving's own default, 4 per
# CPU, refuses callers before a batch is full (tensorflow/serving issue 1795).
MIN_GRPC_THREADS = 96


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see --help)\n")


def _boolean(text: str) -> bool:
    values = {"true": True, "1": True, "false": False, "0": False}
    if text.lower() not in values:
        raise argparse.ArgumentTypeError(f"{text!r} is not true or false")
    return values[text.lower()]


def _whole(text: str, least: int = 0, most: int = 2**31 - 1) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if not least <= value <= most:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} to {most}")
    return value


_count = _whole
_micros = functools.partial(_whole, most=2**63 - 1)
_port = functools.partial(_whole, least=1, most=65535)
_positive = functools.partial(_whole, least=1)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m serving", description="Serve SavedModels over gRPC.")
    add = parser.add_argument

    def add_switch(name: str, default: bool, text: str) -> None:
        add(name, type=_boolean, nargs="?", const=True, default=default, help=text)

    add("--port", type=_port, default=8500, help="TCP port of the gRPC API")
    add("--model_name", default="default", help="name of the one model served")
    add("--model_base_path", type=Path, help="directory that holds its version directories")
    add("--model_config_file", type=Path, help="models.config, in place of the two flags above")
    add("--model_config_file_poll_wait_seconds", type=_count, default=0, help="0: read it once")
    text = "let a label be for a version that is not loaded yet, if it was for no other"
    add_switch("--allow_version_labels_for_unavailable_models", False, text)
    add_switch("--enable_batching", False, "merge concurrent requests into batches")
    add("--batching_parameters_file", type=Path, help="batching.config")
    add("--file_system_poll_wait_seconds", type=_count, default=1, help="0: look once")
    add("--max_num_load_retries", type=_count, default=5)
    add("--load_retry_interval_micros", type=_micros, default=60_000_000)
    add_switch("--enable_model_warmup", True, "replay a version's warm-up requests first")
    add_switch("--enable_serialization_as_tensor_content", False, "pack the numbers of answers")
    threads = max(MIN_GRPC_THREADS, 4 * (os.cpu_count() or 1))
    add("--grpc_max_threads", type=_positive, default=threads, help="requests under way at a time")
    add("--tensorflow_intra_op_parallelism", type=_count, default=0, help="0: one per CPU")
    add("--tensorflow_inter_op_parallelism", type=_count, default=0, help="0: one per CPU")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the server until it is told to stop; returns the exit code."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    parser = _parser()
    flags = parser.parse_args(arguments)
    if bool(flags.model_base_path) == bool(flags.model_config_file):
        parser.error("give either --model_base_path or --model_config_file")
    if flags.batching_parameters_file and not flags.enable_batching:
        parser.error("--batching_parameters_file needs --enable_batching")
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr
    )
    from serving.errors import ConfigError  # TensorFlow's import takes seconds; --help need not

    try:
        serve(flags, stop)
    except ConfigError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    return 0


def serve(flags: argparse.Namespace, stop: threading.Event) -> None:
    """Load the models, answer until told to stop, finish what is running."""
    import tensorflow as tf

    from serving import batching, grpc_api, models_config
    from serving.engine import Servable
    from serving.repository import Polling, Repository, follow

    models = (
        models_config.read(flags.model_config_file)
        if flags.model_config_file
        else [models_config.ModelConfig(flags.model_name, flags.model_base_path)]
    )
    parameters = batching.BatchingParameters() if flags.enable_batching else None
    if flags.batching_parameters_file:
        parameters = batching.read(flags.batching_parameters_file)
    tf.config.threading.set_intra_op_parallelism_threads(flags.tensorflow_intra_op_parallelism)
    tf.config.threading.set_inter_op_parallelism_threads(
        batching.inter_op_threads(parameters, flags.tensorflow_inter_op_parallelism)
    )

    def load(name: str, version: int, path: Path) -> Servable:
        servable = Servable(name, version, path, parameters)
        if flags.enable_model_warmup:
            servable.warm_up(path)
        return servable

    polling = Polling(
        flags.file_system_poll_wait_seconds,
        flags.max_num_load_retries,
        flags.load_retry_interval_micros / 1e6,
    )
    grpc_api.check_port(flags.port)
    allow = flags.allow_version_labels_for_unavailable_models
    repository = Repository(models, load, polling, stop, allow)
    repository.start()
    if stop.is_set():
        return
    if flags.model_config_file and flags.model_config_file_poll_wait_seconds:
        seconds = flags.model_config_file_poll_wait_seconds
        follow(repository, flags.model_config_file, seconds, stop)
    server, port = grpc_api.start_server(
        repository, flags.port, flags.grpc_max_threads, flags.enable_serialization_as_tensor_content
    )
    logging.info("Running gRPC ModelServer at 0.0.0.0:%d ...", port)
    stop.wait()
    logging.info("stopping: finishing what is running, %d s at most", GRACE_SECONDS)
    server.stop(GRACE_SECONDS).wait()


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    # Not sys.exit: a request that outlasts the grace has a thread that Python would wait for.
    os._exit(code)
