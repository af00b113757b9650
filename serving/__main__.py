"""The embedded server.

    python -m serving --port=8500 --model_name=googlenet --model_base_path=$PWD/models/googlenet

GoogLeNet is available after some five seconds. SIGTERM and Ctrl-C stop accepting and finish what is
running; the exit code is 0 then, and 2 for a flag or file that the server cannot start with.
"""

import argparse
import contextlib
import gc
import json
import logging
import os
import resource
import signal
import sys
import threading
import time
from pathlib import Path

# TensorFlow reads these when it is imported. The int8 convolutions exist in oneDNN only.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

DEFAULT_METRICS_PATH = "/monitoring/prometheus/metrics"


def main(arguments: list[str] | None = None) -> int:
    """Run the server until it is told to stop; returns the exit code."""
    from serving import flags

    stop = told_to_stop()
    given = flags.parse(arguments)
    if given.version:
        from importlib import metadata

        from serving import __version__

        print(f"embedded server: {__version__}")
        print(f"TensorFlow Library: {metadata.version('tensorflow')}")
        return 0
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with contextlib.suppress(ValueError, OSError):  # 1024, the usual limit, are soon there
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr
    )
    gc.disable()  # an import makes no garbage, and looking for it takes a quarter of the time
    from serving.errors import ConfigError  # TensorFlow's import takes seconds; --help need not

    try:
        serve(given, stop)
    except ConfigError as error:
        print(f"python -m serving: error: {error}", file=sys.stderr)
        return 2
    return 0


def told_to_stop() -> threading.Event:
    """An event that SIGTERM and SIGINT set, for the main thread of the process to ask for.

    A thread waits for them. A handler would run in the main thread, which, where it is about to
    wait for the event, holds the event's lock: `set` would wait for that for ever.
    """
    stop, signals = threading.Event(), {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # as it is in all threads begun from now on

    def wait() -> None:
        signal.sigwait(signals)
        stop.set()

    threading.Thread(target=wait, name="signals", daemon=True).start()
    return stop


def serve(flags: argparse.Namespace, stop: threading.Event) -> None:
    """Load the models, answer until told to stop, finish what is running."""
    from serving import grpc_api
    from serving.metrics import Metrics
    from serving.repository import Repository, follow

    metrics = Metrics()
    load, polling = _loader(flags, metrics), _polling(flags)
    access_log = _log_access if flags.access_log else None
    options = grpc_api.Options(
        flags.port,
        flags.grpc_socket_path,
        flags.grpc_max_threads,
        flags.enable_serialization_as_tensor_content,
        flags.enable_grpc_healthcheck_service,
        _credentials(flags.ssl_config_file) if flags.ssl_config_file else None,
        flags.grpc_channel_arguments,
        access_log,
    )
    metrics_path = _metrics_path(flags.monitoring_config_file)
    grpc_api.check_port(flags.port, "--port")
    if flags.rest_api_port:
        grpc_api.check_port(flags.rest_api_port, "--rest_api_port")
    allow = flags.allow_version_labels_for_unavailable_models
    models = _models(flags)
    gc.freeze()  # else every call waits, now and then, for a look at all that is TensorFlow's
    gc.enable()
    repository = Repository(models, load, polling, stop, allow)
    repository.start()
    if stop.is_set():
        return
    seconds = flags.model_config_file_poll_wait_seconds
    if flags.model_config_file and seconds > 0:
        follow(repository, flags.model_config_file, seconds, stop)
    server, port = grpc_api.start_server(repository, metrics, options)
    logging.info("Running gRPC ModelServer at 0.0.0.0:%d ...", port)
    rest = None
    if flags.rest_api_port:
        from serving import rest_api

        rest = rest_api.start_server(
            repository,
            metrics,
            port=flags.rest_api_port,
            threads=flags.rest_api_num_threads,
            timeout_ms=flags.rest_api_timeout_in_ms,
            cors=flags.rest_api_enable_cors_support,
            metrics_path=metrics_path,
            max_body_bytes=flags.rest_api_max_body_bytes,
            access_log=access_log,
        )
        logging.info("Exporting HTTP/REST API at:localhost:%d ...", rest.port)
    stop.wait()
    _finish(server, rest, flags.grace_period_seconds)


def _finish(server, rest, grace: int) -> None:
    """Accept no more, and return once all that runs is answered, or after the grace."""
    logging.info("stopping: finishing what is running, %d s at most", grace)
    end = time.monotonic() + grace + 1
    ending = server.stop(grace)  # returns at once, and accepts no more
    if rest:
        rest.stop(grace)
    # gRPC never says that it has ended where one of its threads has died.
    ending.wait(max(0.0, end - time.monotonic()))


def _models(flags: argparse.Namespace):
    from serving import models_config
    from serving.errors import ConfigError, ServingError

    if flags.model_config_file:
        return models_config.read(flags.model_config_file) or []
    path = Path(flags.model_base_path.removeprefix("file://"))
    try:
        return [models_config.ModelConfig(flags.model_name, path)]
    except ServingError as error:
        raise ConfigError(f"--model_base_path: {error}") from error


def _loader(flags: argparse.Namespace, metrics):
    """How a version is loaded: (name, version, directory) -> a servable, warmed up."""
    import tensorflow as tf
    from tensorflow.core.protobuf import config_pb2, rewriter_config_pb2

    from serving import batching
    from serving.engine import Servable, Settings
    from serving.warm_up import warm_up

    parameters = batching.DEFAULTS if flags.enable_batching else None
    if flags.batching_parameters_file:
        parameters = batching.read(flags.batching_parameters_file)
    intra = flags.tensorflow_intra_op_parallelism or flags.tensorflow_session_parallelism
    inter = flags.tensorflow_inter_op_parallelism or flags.tensorflow_session_parallelism
    session = config_pb2.ConfigProto(
        intra_op_parallelism_threads=intra, inter_op_parallelism_threads=inter
    )
    if flags.mixed_precision:
        rewriting = session.graph_options.rewrite_options
        rewriting.auto_mixed_precision_onednn_bfloat16 = rewriter_config_pb2.RewriterConfig.ON
    if parameters:  # each batch under way holds a thread of this pool, without using a CPU
        tf.config.threading.set_inter_op_parallelism_threads(parameters.threads + batching.cpus())

    def load(name: str, version: int, path: Path) -> Servable:
        own = parameters
        if parameters and flags.enable_per_model_batching_parameters:
            own = batching.for_model(path, parameters)
        check = flags.enable_signature_method_name_check
        servable = Servable(name, version, path, Settings(own, session, check, metrics))
        if flags.enable_model_warmup:
            warm_up(servable, path, metrics)
        return servable

    return load


def _polling(flags: argparse.Namespace):
    from serving.repository import Polling

    return Polling(
        flags.file_system_poll_wait_seconds,
        flags.max_num_load_retries,
        flags.load_retry_interval_micros / 1e6,
    )


def _credentials(path: Path):
    """TLS by an SSLConfig file: the texts of a key and a certificate, and of whom to trust."""
    import grpc

    from serving import config_files
    from serving.errors import ConfigError

    config = config_files.read(path, "SSLConfig")
    if not config.server_key or not config.server_cert:
        raise ConfigError(f"{path}: it needs server_key and server_cert, the texts of PEM files")
    if config.client_verify and not config.custom_ca:
        raise ConfigError(f"{path}: client_verify needs custom_ca, who signs clients' certificates")
    return grpc.ssl_server_credentials(
        [(config.server_key.encode(), config.server_cert.encode())],
        config.custom_ca.encode() or None,
        config.client_verify,
    )


def _metrics_path(path: Path | None) -> str | None:
    from serving import config_files

    if path is None:
        return None
    config = config_files.read(path, "MonitoringConfig").prometheus_config
    return (config.path or DEFAULT_METRICS_PATH) if config.enable else None


def _log_access(**fields: object) -> None:
    print(json.dumps({"time": round(time.time(), 3), **fields}), file=sys.stderr, flush=True)


if __name__ == "__main__":
    # TensorFlow imports one of them by itself, and Matplotlib with it, which takes a second or two.
    sys.modules["keras"] = sys.modules["tf_keras"] = None  # type: ignore[assignment]
    code = main()
    logging.shutdown()
    sys.stdout.flush()
    # Not sys.exit: a request that outlasts the grace has a thread that Python would wait for.
    os._exit(code)
