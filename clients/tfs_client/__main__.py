"""The `tfs` command.

    tfs classify ankle-boot.png photos/ 'more/**/*.jpg'
    find photos -name '*.png' | tfs classify --format jsonl -
    tfs predict x='[1, 2]'
    tfs status
    tfs metadata
    tfs wait --timeout 60
    tfs reload models.config
    tfs bench --images samples/ --rate 50,100 --output before/
    tfs bench compare before/ after/
    tfs plan before/ --rate 50000 --p99-ms 100 --batching serving/config/batching.config
    tfs canary stable:8500 canary:8500 --images samples/
    tfs tune --server 'python -m serving --port={port} --model_base_path=/models/m {flags}'
    tfs completion bash

Exit codes: 0 all went well; 1 an image could not be classified, a benchmark's request failed, a
comparison found a regression, or a canary is to be rolled back; 2 a usage error; 3 the server
failed, or was not ready; 4 nothing is sure of a canary yet; 130 Ctrl-C. A bearer token is taken
from the environment's TFS_TOKEN.
"""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from tfs_client import _commands
from tfs_client._arguments import count, counts, pairs, positive, rates, share
from tfs_client._base import DEFAULT_MODEL
from tfs_client._channels import DEFAULT_ADDRESS
from tfs_client._client import Client
from tfs_client._commands import UsageError
from tfs_client._errors import InvalidImageError, NotReadyError, ServerError, TFSError
from tfs_client._options import TLS, Retry, Timeout
from tfs_client.bench import loads, payloads

TOKEN = "TFS_TOKEN"
_ADDRESSES = "host:port, or several with commas between"
BAD_IMAGE, USAGE, SERVER, INTERRUPTED = 1, 2, 3, 130


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"{self.prog}: error: {message} (see --help)\n")


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if sys.stdout is None:  # it is closed
        sys.stdout = io.StringIO()
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files may be any bytes
        sys.stdout.reconfigure(errors="surrogateescape")
    try:
        code = _run(parser, options)
        sys.stdout.flush()
        return code
    except TFSError as error:
        print(f"tfs: error: {error}", file=sys.stderr)
        return _exit_code(error)
    except ValueError as error:
        print(f"tfs: error: {error}", file=sys.stderr)
        return USAGE
    except BrokenPipeError:  # whoever read our output has had enough
        _discard_output()
        return 0
    except OSError as error:
        _discard_output()
        print(f"tfs: error: cannot write: {error.strerror}", file=sys.stderr)
        return USAGE
    except KeyboardInterrupt:
        return INTERRUPTED


def _run(parser: _Parser, options: argparse.Namespace) -> int:
    if "shell" in options:
        return _completion(parser, options.shell)
    if "offline" in options:
        found: int = options.offline(options)
        return found
    with _client(options, options.address) as client:
        code: int = options.run(client, options)
        return code


def _discard_output() -> None:
    """Of what is still held back, which Python would write when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _exit_code(error: TFSError) -> int:
    if isinstance(error, InvalidImageError):
        return BAD_IMAGE
    return SERVER if isinstance(error, (ServerError, NotReadyError)) else USAGE


def _client(options: argparse.Namespace, address: str) -> Client:
    encrypted = options.tls or options.ca or options.cert or options.key
    token = os.environ.get(TOKEN, "").strip()
    if not (token.isascii() and token.isprintable()):
        raise UsageError(f"{TOKEN} is not printable ASCII text")
    try:
        options.settings = {
            "address": address.split(","),
            "model": options.model,
            "timeout": Timeout(request=options.timeout),
            "version": options.version,
            "version_label": options.version_label,
            "tls": TLS(options.ca, options.cert, options.key) if encrypted else None,
            "token": token or None,
            "authority": options.authority,
            "retry": Retry(attempts=options.attempts),
        }
        return Client(**options.settings)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _parser() -> _Parser:
    parser = _Parser("tfs", description="Call a model on TensorFlow Serving.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(run: Callable[[Client, argparse.Namespace], int]) -> _Parser:
        added = commands.add_parser(run.__name__, help=run.__doc__, description=run.__doc__)
        added.add_argument("--address", default=DEFAULT_ADDRESS, help=_ADDRESSES)
        added.add_argument("--version", type=int, help="the model's version")
        added.add_argument("--version-label", help="a version's label, in place of its number")
        _add_connection(added)
        added.set_defaults(run=run)
        return added

    classify = command(_commands.classify)
    classify.add_argument(
        "images", nargs="+", metavar="FILE",
        help="files, folders, patterns; - for an image or a list of files on standard input",
    )  # fmt: skip
    classify.add_argument("--top", type=int, choices=range(1, 6), default=3, help="classes shown")
    classify.add_argument("--format", choices=_commands.FORMATS, default="table")
    predict = command(_commands.predict)
    predict.add_argument(
        "inputs", nargs="+", metavar="NAME=VALUE", help="JSON, @array.npy, or @file for its bytes"
    )
    predict.add_argument("--signature", default="", help="the default one, if not given")
    command(_commands.status)
    command(_commands.metadata)
    command(_commands.wait)
    command(_commands.reload).add_argument("config", metavar="FILE", help="a models.config")
    _add_bench(command(_commands.bench))
    _add_tune(commands)
    _add_canary(commands)
    _add_plan(commands)
    text = "Print a script that completes this command's arguments in a shell."
    completion = commands.add_parser("completion", help=text, description=text)
    completion.add_argument("shell", choices=("bash", "zsh", "tcsh"))
    return parser


def _add_connection(parser: _Parser) -> None:
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument(
        "--timeout", type=positive, default=Timeout().request, help="seconds a request"
    )
    parser.add_argument("--tls", action="store_true", help="encrypt, with the system's CAs")
    parser.add_argument("--ca", metavar="FILE", help="encrypt, with the CAs of a PEM file")
    parser.add_argument("--cert", metavar="FILE", help="the client's own certificate")
    parser.add_argument("--key", metavar="FILE", help="and its key")
    parser.add_argument(
        "--authority", metavar="NAME",
        help="that the server's certificate names, where the address does not, as when forwarded",
    )  # fmt: skip
    parser.set_defaults(attempts=Retry().attempts)


def _add_payload(parser: _Parser) -> None:
    parser.add_argument(
        "--images", nargs="+", metavar="FILE",
        help="files, folders, patterns, which are sent in turn; made ones, if not given",
    )  # fmt: skip
    parser.add_argument(
        "--payload", choices=payloads.DTYPES, default="encoded", help="what an image is sent as"
    )
    parser.add_argument(
        "--size", type=count, default=payloads.SIZE, help="height and width of pixels, made images"
    )
    parser.add_argument("--seed", type=int, default=0, help="of made images and moments (0)")


def _add_bench(bench: _Parser) -> None:
    bench.set_defaults(attempts=1)  # what fails is to be seen
    _add_payload(bench)
    bench.add_argument(
        "--batch", type=counts, default=(1,), metavar="N[,N…]", help="images in a request"
    )
    bench.add_argument("--signature", help="the first that takes the payload, if not given")
    bench.add_argument(
        "--concurrency", type=counts, metavar="N[,N…]",
        help="callers, each of which waits for its answer; 1,8,32 if no load is named",
    )  # fmt: skip
    bench.add_argument(
        "--rate", type=rates, metavar="R[,R…]", help="requests a second, which nobody waits for"
    )
    bench.add_argument(
        "--steps", type=pairs("RATE:SECONDS"), metavar="R:S[,R:S…]",
        help="rates one after another, each for some seconds",
    )  # fmt: skip
    bench.add_argument(
        "--burst", type=pairs("REQUESTS:SECONDS"), metavar="N:S[,N:S…]",
        help="so many requests at once, every so many seconds",
    )  # fmt: skip
    bench.add_argument(
        "--replay", metavar="FILE", help="requests at a file's moments, in seconds, one a line"
    )
    bench.add_argument(
        "--scenario",
        choices=("single-stream", "server", "offline", "all"),
        help="MLPerf's, in place of loads",
    )
    bench.add_argument(
        "--arrivals", choices=loads.ARRIVALS, default="poisson", help="of the requests of a --rate"
    )
    bench.add_argument(
        "--limit-ms", type=positive, default=100.0, help="of p99 in scenario server (100)"
    )
    bench.add_argument(
        "--seconds", type=positive, default=3.0,
        help="of a window (3); there are three to ten, until they agree, after one to warm up",
    )  # fmt: skip
    bench.add_argument("--repeats", type=count, default=1, help="of each load, in turn (1)")
    bench.add_argument("--senders", type=count, default=1, help="processes that send (1)")
    bench.add_argument(
        "--metrics", metavar="URL", help="of the server's metrics, to set beside each load"
    )
    bench.add_argument(
        "--output", type=Path, metavar="FOLDER", help="for the report: JSON, CSV, HTML, PNG"
    )
    more = bench.add_subparsers(metavar="compare")
    text = _commands.compare.__doc__
    compare = more.add_parser("compare", help=text, description=text)
    compare.add_argument("before", help="a folder of --output, or its report.json")
    compare.add_argument("after", help="the same")
    compare.add_argument(
        "--tolerance", type=positive, default=5.0, metavar="PERCENT",
        help="by which a figure may be worse (5)",
    )  # fmt: skip
    compare.set_defaults(offline=_commands.compare)


def _add_tune(commands: argparse._SubParsersAction[_Parser]) -> None:
    text = _commands.tune.__doc__
    tune = commands.add_parser("tune", help=text, description=text)
    tune.add_argument(
        "--server", required=True, metavar="COMMAND",
        help="starts it: words as in a shell, with {port} and {flags} where these go",
    )  # fmt: skip
    tune.add_argument("--model", default=DEFAULT_MODEL)
    _add_payload(tune)
    tune.add_argument(
        "--cpus", type=counts, metavar="N[,N…]", help="cores of the server; this machine's limit"
    )
    tune.add_argument("--limit-ms", type=positive, default=500.0, help="of p99 (500)")
    tune.add_argument("--seconds", type=positive, default=1.5, help="of a window (1.5)")
    tune.add_argument(
        "--repeats", type=count, default=3, help="rounds in which servers take turns (3)"
    )
    tune.add_argument(
        "--setting", type=Path, metavar="FILE",
        help="a batching file, with the `flags` beside it if there are, that is measured beside "
        "servers nobody tuned, in place of a search",
    )  # fmt: skip
    tune.add_argument(
        "--output", type=Path, metavar="FOLDER", help="for batching.config, and cpus/ with others"
    )
    tune.add_argument("--report", type=Path, metavar="FILE", help="Markdown of all that was found")
    tune.set_defaults(offline=_tune)


def _add_canary(commands: argparse._SubParsersAction[_Parser]) -> None:
    text = _commands.canary.__doc__
    canary = commands.add_parser(
        "canary", help=text, description=text,
        epilog="Exit codes: 0 promote, 1 roll back, 2 a usage error, 3 a server failed, 4 hold: "
        "what is sure does not suffice for either.",
    )  # fmt: skip
    canary.add_argument("stable", help=_ADDRESSES)
    canary.add_argument("canary", help="the same")
    _add_connection(canary)
    _add_payload(canary)
    canary.add_argument("--signature", help="the first that takes the payload, if not given")
    canary.add_argument(
        "--seconds", type=positive, default=60.0, help="of the window of metrics (60)"
    )
    for track in ("stable", "canary"):
        canary.add_argument(
            f"--{track}-metrics",
            metavar="URL",
            help="of its metrics; on the next port, if not given",
        )
    canary.add_argument(
        "--errors", type=share, default=0.01, metavar="SHARE",
        help="of its calls that may fail beyond stable's share (0.01)",
    )  # fmt: skip
    canary.add_argument(
        "--latency-ratio", type=positive, default=1.5, metavar="RATIO",
        help="of its p50 and p99 to stable's, at the most (1.5)",
    )  # fmt: skip
    canary.add_argument(
        "--disagreement", type=share, default=0.1, metavar="SHARE",
        help="of the images that it may give another class (0.1)",
    )  # fmt: skip
    canary.add_argument("--output", type=Path, metavar="FILE", help="for the verdict, as JSON")
    canary.set_defaults(offline=_canary)


def _add_plan(commands: argparse._SubParsersAction[_Parser]) -> None:
    text = _commands.plan.__doc__
    plan = commands.add_parser("plan", help=text, description=text)
    plan.add_argument("report", help="a folder of `tfs bench --output`, or its report.json")
    plan.add_argument("--rate", type=positive, required=True, help="images a second")
    plan.add_argument("--p99-ms", type=positive, default=100.0, help="limit of p99 (100)")
    plan.add_argument(
        "--batching", metavar="FILE", help="that the server was measured with; none if not given"
    )
    plan.set_defaults(offline=_commands.plan)


def _canary(options: argparse.Namespace) -> int:
    options.version = options.version_label = None
    with _client(options, options.stable) as stable, _client(options, options.canary) as canary:
        return _commands.canary(stable, canary, options)


def _tune(options: argparse.Namespace) -> int:
    for number in (signal.SIGTERM, signal.SIGHUP):  # the servers end with it
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
            signal.signal(number, lambda n, _: sys.exit(128 + n))
    options.settings = {"model": options.model, "retry": Retry(attempts=1)}
    return _commands.tune(options)


def _completion(parser: _Parser, shell: str) -> int:
    try:
        import shtab
    except ImportError:
        raise UsageError("completion needs shtab: pip install 'tfs-client[command]'") from None
    print(shtab.complete(parser, shell))
    return 0


if __name__ == "__main__":
    sys.exit(main())
