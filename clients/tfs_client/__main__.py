"""The `tfs` command.

    tfs classify ankle-boot.png bag.jpg
    tfs status
    tfs metadata
    tfs bench samples/*.png

Exit code 0 when all went well; 2 for a usage error, a server's error or an unreadable image.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from tfs_client import _client
from tfs_client._client import Client
from tfs_client._errors import InvalidImageError, TFSError
from tfs_client._results import TensorSpec
from tfs_client.bench import closed_loop, report

MAX_SECONDS = 86_400  # gRPC fails at once where a deadline is too far off for it


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see --help)\n")


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        with Client(options.address, options.model, options.timeout) as client:
            code: int = options.run(client, options)
            return code
    except TFSError as error:
        print(f"tfs: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _parser() -> _Parser:
    parser = _Parser("tfs", description="Call a model on TensorFlow Serving.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[Client, argparse.Namespace], int]) -> _Parser:
        added = commands.add_parser(name, help=run.__doc__, description=run.__doc__)
        added.add_argument("--address", default=_client.DEFAULT_ADDRESS, help="host:port")
        added.add_argument("--model", default=_client.DEFAULT_MODEL)
        added.add_argument(
            "--timeout", type=_positive, default=_client.DEFAULT_TIMEOUT, help="seconds a call"
        )
        added.set_defaults(run=run)
        return added

    classify = command("classify", _classify)
    classify.add_argument("images", nargs="+", metavar="FILE")
    classify.add_argument("--top", type=int, choices=range(1, 6), default=3, help="classes shown")
    command("status", _status)
    command("metadata", _metadata)
    bench = command("bench", _bench)
    bench.add_argument("images", nargs="+", metavar="FILE", help="images that are sent in turn")
    bench.add_argument("--seconds", type=_positive, default=10.0, help="each measurement's")
    bench.add_argument(
        "--concurrency", type=_counts, default=(1, 8, 32), metavar="N[,N…]", help="callers"
    )
    return parser


def _classify(client: Client, options: argparse.Namespace) -> int:
    """Print the most probable classes of images."""
    answers = client.classify(options.images, errors="return")
    width = max(len(name) for name in options.images)
    for name, answer in zip(options.images, answers, strict=True):
        if isinstance(answer, InvalidImageError):
            print(f"tfs: error: {answer}", file=sys.stderr)
        else:
            labels = (f"{label.name} {label.score:.3f}" for label in answer.labels[: options.top])
            print(f"{name:{width}}  {'  '.join(labels)}")
    return 2 if any(isinstance(answer, InvalidImageError) for answer in answers) else 0


def _status(client: Client, _: argparse.Namespace) -> int:
    """Print the versions of the model and their states."""
    for status in client.status():
        print(f"{client.model} version {status.version}: {status.state} {status.error}".rstrip())
    return 0


def _metadata(client: Client, _: argparse.Namespace) -> int:
    """Print the model's signatures."""
    for name, signature in client.metadata().items():
        print(f"{name} ({signature.method})")
        for way, specs in (("input", signature.inputs), ("output", signature.outputs)):
            for key, spec in specs.items():
                print(f"  {way:6} {key}: {_spec_text(spec)}")
    return 0


def _bench(client: Client, options: argparse.Namespace) -> int:
    """Measure how many images a second the server classifies."""
    answers = client.classify(options.images)
    images = [Path(path).read_bytes() for path in options.images]
    expected = [answer.label for answer in answers]
    print(
        f"{client.model} version {answers[0].version} at {client.address}: "
        f"{len(images)} images in turn, {options.seconds:g} s a line"
    )
    print(report.HEADER)
    bad = 0
    for callers in options.concurrency:
        result = closed_loop.measure(client, images, expected, callers, options.seconds)
        print(report.row(result), flush=True)
        bad += result.wrong + result.errors.total()
    return 2 if bad else 0


def _spec_text(spec: TensorSpec) -> str:
    if spec.shape is None:
        return f"{spec.dtype} of any shape"
    return f"{spec.dtype} [{', '.join('N' if size < 0 else str(size) for size in spec.shape)}]"


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= MAX_SECONDS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0 and to {MAX_SECONDS}")
    return value


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
