"""The command line: tensorflow_model_server's own flags, and a few more.

What exists there and means nothing here is taken with a warning; what exists nowhere is refused.
"""

import argparse
import difflib
import functools
import os
import sys
from pathlib import Path
from typing import NoReturn

# Waiting in the batch scheduler costs a thread and no CPU; TensorFlow Serving's own default, 4 per
# CPU, refuses callers before a batch is full (tensorflow/serving issue 1795).
MIN_GRPC_THREADS = 96

_MEANINGLESS = {
    "num_load_threads": "models are loaded one after another",
    "num_unload_threads": "models are unloaded one after another",
    "flush_filesystem_caches": "nothing is flushed",
    "tensorflow_session_config_file": "use the flags of parallelism",
    "platform_config_file": "there is one platform",
    "per_process_gpu_memory_fraction": "this server is for CPUs",
    "saved_model_tags": "the tag is always `serve`",
    "use_alts_credentials": "there is no ALTS outside of Google Cloud",
    "num_request_iterations_for_warmup": "each request is replayed once",
    "remove_unused_fields_from_bundle_metagraph": "nothing is kept of it",
    "prefer_tflite_model": "there is no TensorFlow Lite here",
    "num_tflite_pools": "there is no TensorFlow Lite here",
    "num_tflite_interpreters_per_pool": "there is no TensorFlow Lite here",
    "xla_cpu_compilation_enabled": "graphs run as they are",
    "xla_gpu_compilation_enabled": "this server is for CPUs",
    "enable_profiler": "there is no profiler service",
    "thread_pool_factory_config_file": "there is one thread pool",
    "skip_initialize_tpu": "this server is for CPUs",
    "use_tfrt": "the classic runtime is used",
    "rest_api_impl": "there is one implementation",
}


_NO_INT32 = 2**31  # gRPC takes numbers below it


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


def _channel_arguments(text: str) -> list[tuple[str, int | str]]:
    pairs: list[tuple[str, int | str]] = []
    for pair in filter(None, text.split(",")):
        key, equals, value = pair.partition("=")
        if not equals:
            raise argparse.ArgumentTypeError(f"{pair!r} is not name=value")
        number = int(value) if value.removeprefix("-").isdigit() else _NO_INT32
        pairs.append((key, number if abs(number) < _NO_INT32 else value))
    return pairs


_count = _whole
_micros = functools.partial(_whole, least=-(2**63), most=2**63 - 1)
_seconds = functools.partial(_whole, least=-(2**31))
_port = functools.partial(_whole, most=65535)
_positive = functools.partial(_whole, least=1)


def _parser() -> _Parser:
    parser = _Parser(prog="python -m serving", description="Serve SavedModels.", allow_abbrev=False)
    add = parser.add_argument

    def add_switch(name: str, text: str, default: bool = False) -> None:
        add(name, type=_boolean, nargs="?", const=True, default=default, help=text)

    threads = max(MIN_GRPC_THREADS, 4 * (os.cpu_count() or 1))
    add("--version", action="store_true", help="print the version and end")
    add("--port", type=functools.partial(_port, least=1), default=8500, help="of the gRPC API")
    add("--grpc_socket_path", default="", help="a UNIX socket for the gRPC API as well")
    add(
        "--grpc_max_threads", type=_positive, default=threads, help="gRPC calls under way at a time"
    )
    add("--grpc_channel_arguments", type=_channel_arguments, default=[], help="name=value,…")
    add("--rest_api_port", type=_port, default=0, help="of the REST API; 0: none")
    add("--rest_api_num_threads", type=_positive, default=4 * (os.cpu_count() or 1))
    add("--rest_api_timeout_in_ms", type=_count, default=30_000, help="0: no limit")
    text = "largest REST request, also when unpacked; this server's own flag"
    add("--rest_api_max_body_bytes", type=_positive, default=256 * 2**20, help=text)
    add_switch("--rest_api_enable_cors_support", "let web pages of any site call the REST API")
    add("--model_name", default="default", help="name of the one model served")
    add("--model_base_path", help="directory that holds its version directories; absolute")
    text = "models.config: the two flags above are then ignored"
    add("--model_config_file", type=Path, help=text)
    text = "0 and below: read it once"
    add("--model_config_file_poll_wait_seconds", type=_seconds, default=0, help=text)
    text = "let a label be for a version that is not loaded yet, if it was for no other"
    add_switch("--allow_version_labels_for_unavailable_models", text)
    add_switch("--enable_batching", "merge concurrent requests into batches")
    add("--batching_parameters_file", type=Path, help="batching.config")
    text = "batch only versions with a batching_params.pbtxt, by that file"
    add_switch("--enable_per_model_batching_parameters", text)
    add("--file_system_poll_wait_seconds", type=_count, default=1, help="0: look once")
    add("--max_num_load_retries", type=_count, default=5)
    add("--load_retry_interval_micros", type=_micros, default=60_000_000, help="below 0: none")
    add_switch("--enable_model_warmup", "replay a version's warm-up requests first", True)
    add_switch("--enable_signature_method_name_check", "hold signatures to their method names")
    add_switch("--enable_serialization_as_tensor_content", "pack the numbers of answers")
    add_switch("--enable_grpc_healthcheck_service", "offer grpc.health.v1")
    add("--tensorflow_session_parallelism", type=_count, default=0, help="both of the following")
    add("--tensorflow_intra_op_parallelism", type=_count, default=0, help="0: one per CPU")
    add("--tensorflow_inter_op_parallelism", type=_count, default=0, help="0: one per CPU")
    add("--mixed_precision", choices=["", "bfloat16"], default="", help="rewrite graphs to it")
    add("--monitoring_config_file", type=Path, help="monitoring.config: the metrics' page")
    add("--ssl_config_file", type=Path, help="TLS of the gRPC API")
    text = "how long SIGTERM lets requests finish; this server's own flag"
    add("--grace_period_seconds", type=_count, default=30, help=text)
    add_switch("--access_log", "a line of JSON for each request; this server's own flag")
    for name in _MEANINGLESS:
        add(f"--{name}", nargs="?", const="true", help=argparse.SUPPRESS)
    return parser


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The flags; ends the process with exit code 2 for what cannot be."""
    parser = _parser()
    flags, unknown = parser.parse_known_args(arguments)
    for given in unknown:
        parser.error(f"unknown flag {given.partition('=')[0]}{_nearest(parser, given)}")
    for name, why in _MEANINGLESS.items():
        if getattr(flags, name) is not None:
            print(f"{parser.prog}: warning: --{name} has no effect: {why}", file=sys.stderr)
    if not flags.version:
        _check_together(parser, flags)
    return flags


def _nearest(parser: argparse.ArgumentParser, given: str) -> str:
    names = [name for action in parser._actions for name in action.option_strings]
    near = difflib.get_close_matches(given.partition("=")[0], names, 1)
    return f": did you mean {near[0]}?" if near else ""


def _check_together(parser: argparse.ArgumentParser, flags: argparse.Namespace) -> None:
    if not flags.model_base_path and not flags.model_config_file:
        parser.error("give either --model_base_path or --model_config_file")
    parallelism = ("session", "intra_op", "inter_op")
    if all(getattr(flags, f"tensorflow_{name}_parallelism") for name in parallelism):
        parser.error("--tensorflow_session_parallelism stands for both of the others: leave it out")
    if flags.batching_parameters_file and not flags.enable_batching:
        parser.error("--batching_parameters_file needs --enable_batching")
    if flags.rest_api_port == flags.port:
        parser.error("--rest_api_port cannot be same as --port")
