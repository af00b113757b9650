"""The `tfs` command.

    tfs classify ankle-boot.png photos/ 'more/**/*.jpg'
    find photos -name '*.png' | tfs classify --format jsonl -
    tfs predict x='[1, 2]'
    tfs status
    tfs metadata
    tfs wait --timeout 60
    tfs reload models.config
    tfs bench samples/*.png
    tfs bench --rate 50,100 samples/*.png
    tfs completion bash

Exit codes: 0 all went well; 1 an image could not be classified, or a benchmark's call failed; 2 a
usage error; 3 the server failed, or was not ready; 130 Ctrl-C. A bearer token is taken from the
environment's TFS_TOKEN.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from tfs_client import _commands
from tfs_client._base import DEFAULT_MODEL
from tfs_client._channels import DEFAULT_ADDRESS
from tfs_client._client import Client
from tfs_client._commands import UsageError
from tfs_client._errors import InvalidImageError, NotReadyError, ServerError, TFSError
from tfs_client._options import MAX_SECONDS, TLS, Retry, Timeout
from tfs_client.bench import open_loop

TOKEN = "TFS_TOKEN"
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
    with _client(options) as client:
        code: int = options.run(client, options)
        return code


def _discard_output() -> None:
    """Of what is still held back, which Python would write when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _exit_code(error: TFSError) -> int:
    if isinstance(error, InvalidImageError):
        return BAD_IMAGE
    return SERVER if isinstance(error, (ServerError, NotReadyError)) else USAGE


def _client(options: argparse.Namespace) -> Client:
    encrypted = options.tls or options.ca or options.cert or options.key
    try:
        options.settings = {
            "address": options.address.split(","),
            "model": options.model,
            "timeout": Timeout(request=options.timeout),
            "version": options.version,
            "version_label": options.version_label,
            "tls": TLS(options.ca, options.cert, options.key) if encrypted else None,
            "token": os.environ.get(TOKEN) or None,
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
        added.add_argument(
            "--address", default=DEFAULT_ADDRESS, help="host:port, or several with commas between"
        )
        added.add_argument("--model", default=DEFAULT_MODEL)
        added.add_argument("--version", type=int, help="the model's version")
        added.add_argument("--version-label", help="a version's label, in place of its number")
        added.add_argument(
            "--timeout", type=_positive, default=Timeout().request, help="seconds a request"
        )
        added.add_argument("--tls", action="store_true", help="encrypt, with the system's CAs")
        added.add_argument("--ca", metavar="FILE", help="encrypt, with the CAs of a PEM file")
        added.add_argument("--cert", metavar="FILE", help="the client's own certificate")
        added.add_argument("--key", metavar="FILE", help="and its key")
        added.set_defaults(run=run, attempts=Retry().attempts)
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
    bench = command(_commands.bench)
    bench.set_defaults(attempts=1)  # what fails is to be seen
    bench.add_argument("images", nargs="+", metavar="FILE", help="images that are sent in turn")
    bench.add_argument("--seconds", type=_positive, default=10.0, help="each measurement's")
    load = bench.add_mutually_exclusive_group()
    load.add_argument(
        "--concurrency", type=_counts, default=(1, 8, 32), metavar="N[,N…]",
        help="callers, each of which waits for its answer",
    )  # fmt: skip
    load.add_argument(
        "--rate", type=_rates, metavar="R[,R…]",
        help="requests a second, in place of callers, which do not wait for each other",
    )  # fmt: skip
    bench.add_argument(
        "--arrivals", choices=open_loop.ARRIVALS, default="poisson", help="of a --rate"
    )
    text = "Print a script that completes this command's arguments in a shell."
    completion = commands.add_parser("completion", help=text, description=text)
    completion.add_argument("shell", choices=("bash", "zsh", "tcsh"))
    return parser


def _completion(parser: _Parser, shell: str) -> int:
    try:
        import shtab
    except ImportError:
        raise UsageError("completion needs shtab: pip install 'tfs-client[command]'") from None
    print(shtab.complete(parser, shell))
    return 0


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= MAX_SECONDS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0 and to {MAX_SECONDS}")
    return value


def _rates(text: str) -> tuple[float, ...]:
    return tuple(_positive(part) for part in text.split(","))


def _counts(text: str) -> tuple[int, ...]:
    try:
        counts = tuple(int(part) for part in text.split(","))
    except ValueError:
        counts = (0,)
    if min(counts) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers from 1")
    return counts


if __name__ == "__main__":
    sys.exit(main())
