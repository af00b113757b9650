"""What the `tfs` command's sub-commands do."""

from __future__ import annotations

import argparse
import base64
import csv
import glob
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tfs_client._client import Client
from tfs_client._errors import InvalidImageError, ServerError, TFSError
from tfs_client._results import Classification, TensorSpec
from tfs_client._tensors import Array, numpy_dtype, plain_array

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".gif", ".bmp"})
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM")
_BAR_SECONDS = 2.0  # before a progress bar is worth looking at

Answer = Classification | InvalidImageError


class UsageError(TFSError):
    """What the user typed cannot be done."""


def classify(client: Client, options: argparse.Namespace) -> int:
    """Print the most probable classes of images."""
    names, images = _sources(options.images)
    write = _WRITERS[options.format](names, options.top)
    bad = 0
    answers = client.classify_iter(images, errors="return")
    for name, answer in zip(names, _with_progress(answers, len(names)), strict=True):
        if isinstance(answer, ServerError):
            raise answer
        bad += isinstance(answer, InvalidImageError)
        write(name, answer)
    return 1 if bad else 0


def _sources(arguments: list[str]) -> tuple[list[str], list[str | bytes]]:
    """Names to print, and what to classify: files, those in folders and of patterns, and stdin."""
    names: list[str] = []
    images: list[str | bytes] = []
    for argument in arguments:
        if argument == "-":
            if sys.stdin is None:
                raise UsageError("standard input is closed: name files")
            content = sys.stdin.buffer.read()
            if content.startswith(_MAGIC):
                names.append("-")
                images.append(content)
                continue
            found = [line for line in content.decode(errors="surrogateescape").splitlines() if line]
        else:
            found = _files(argument)
        names += found
        images += found
    return names, images


def _files(argument: str) -> list[str]:
    path = Path(argument)
    try:
        folder, exists = path.is_dir(), path.exists()
    except (OSError, ValueError):  # what is wrong with it is said of the image
        return [argument]
    if folder:
        found = sorted(
            str(file)
            for file in path.rglob("*")
            if file.suffix.lower() in SUFFIXES and file.is_file()
        )
        if not found:
            raise UsageError(f"{argument}: has no images ({', '.join(sorted(SUFFIXES))})")
        return found
    if glob.has_magic(argument) and not exists:
        found = sorted(glob.glob(argument, recursive=True))
        if not found:
            raise UsageError(f"{argument}: no file has such a name")
        return found
    return [argument]


def _with_progress(answers: Iterator[Any], count: int) -> Iterator[Any]:
    """Show a bar where nothing else is shown."""
    if sys.stdout.isatty() or not (sys.stderr and sys.stderr.isatty()):
        return answers
    try:
        from tqdm import tqdm
    except ImportError:  # extra `command`
        return answers
    return iter(tqdm(answers, total=count, unit="image", delay=_BAR_SECONDS, leave=False))


def _table(names: list[str], top: int) -> Callable[[str, Answer], None]:
    width = max(map(len, names), default=0)

    def write(name: str, answer: Answer) -> None:
        if isinstance(answer, InvalidImageError):
            print(f"tfs: error: {answer}", file=sys.stderr)
            return
        labels = (f"{label.name} {label.score:.3f}" for label in answer.labels[:top])
        print(f"{name:{width}}  {'  '.join(labels)}", flush=True)

    return write


def _json_lines(_: list[str], top: int) -> Callable[[str, Answer], None]:
    def write(name: str, answer: Answer) -> None:
        row: dict[str, Any] = {"image": name}
        if isinstance(answer, InvalidImageError):
            row["error"] = answer.reason
        else:
            row["labels"] = [{"name": x.name, "score": x.score} for x in answer.labels[:top]]
            row |= {"model": answer.model, "version": answer.version}
        print(json.dumps(row, ensure_ascii=False), flush=True)

    return write


def _csv(_: list[str], top: int) -> Callable[[str, Answer], None]:
    rows = csv.writer(sys.stdout, lineterminator="\n")
    rows.writerow(["image", "rank", "label", "score", "error"])

    def write(name: str, answer: Answer) -> None:
        if isinstance(answer, InvalidImageError):
            rows.writerow([name, "", "", "", answer.reason])
            return
        for rank, label in enumerate(answer.labels[:top], 1):
            rows.writerow([name, rank, label.name, label.score, ""])

    return write


_WRITERS = {"table": _table, "jsonl": _json_lines, "csv": _csv}
FORMATS = tuple(_WRITERS)


def predict(client: Client, options: argparse.Namespace) -> int:
    """Run a signature on tensors; print its outputs as JSON."""
    signatures = client.metadata().signatures
    name = options.signature or "serving_default"
    if name not in signatures:
        raise UsageError(f"no signature {name!r}: there are {', '.join(signatures)}")
    specs = signatures[name].inputs
    inputs = dict(_input(text, specs) for text in options.inputs)
    try:
        answer = client.predict(inputs, signature=options.signature)
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from error
    outputs = {key: _plain(value.tolist()) for key, value in answer.outputs.items()}
    text = {"outputs": outputs, "model": answer.model, "version": answer.version}
    print(json.dumps(text, default=lambda number: [number.real, number.imag]))
    return 0


def _input(text: str, specs: dict[str, TensorSpec]) -> tuple[str, Array]:
    name, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"{text!r} is not NAME=VALUE, such as x=[1,2] or images=@pixels.npy")
    if name not in specs:
        raise UsageError(f"no input {name!r}: there are {', '.join(specs)}")
    try:
        given = _from_file(Path(value[1:])) if value.startswith("@") else _from_json(value)
        return name, _as_dtype(given, specs[name].dtype)
    except (OSError, ValueError, TypeError, EOFError, RecursionError) as error:
        raise UsageError(f"input {name}: {error}") from error


def _from_file(path: Path) -> Array:
    """A .npy file's array, or any other file's bytes as a batch of one string."""
    if path.suffix == ".npy":
        array = np.load(path, allow_pickle=False)
        if not isinstance(array, np.ndarray):
            raise ValueError(f"{path} is an archive: give one array")
        return array
    return np.array([path.read_bytes()], object)


def _from_json(text: str) -> Array:
    try:
        return plain_array(json.loads(text, object_hook=_from_b64))
    except json.JSONDecodeError:
        raise ValueError(f"{text!r} is not JSON; a string needs its quotes") from None


def _from_b64(value: dict[str, Any]) -> Any:
    """Bytes, as TensorFlow Serving's REST API has them."""
    return base64.b64decode(value["b64"], validate=True) if set(value) == {"b64"} else value


def _as_dtype(array: Array, name: str) -> Array:
    if name == "bytes":
        return array
    if array.dtype == object or array.dtype.kind in "SU":
        raise TypeError(f"is text where {name} is asked for")
    converted = array.astype(numpy_dtype(name) or np.dtype(name))
    if array.dtype.kind in "iu" + "f" * (converted.dtype.kind in "iu") and not np.array_equal(
        converted, array
    ):
        raise ValueError(f"has values that {name} cannot hold")
    return converted


def _plain(value: Any) -> Any:
    """Bytes as text, or as TensorFlow Serving's REST API has them where they are none."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if not isinstance(value, bytes):
        return value
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"b64": base64.b64encode(value).decode()}


def status(client: Client, _: argparse.Namespace) -> int:
    """Print the versions of the model and their states."""
    for found in client.status():
        print(f"{client.model} version {found.version}: {found.state} {found.error}".rstrip())
    return 0


def metadata(client: Client, _: argparse.Namespace) -> int:
    """Print the model's signatures."""
    for name, signature in client.metadata().signatures.items():
        print(f"{name} ({signature.method})")
        for way, specs in (("input", signature.inputs), ("output", signature.outputs)):
            for key, spec in specs.items():
                print(f"  {way:6} {key}: {_spec_text(spec)}")
    return 0


def _spec_text(spec: TensorSpec) -> str:
    if spec.shape is None:
        return f"{spec.dtype} of any shape"
    return f"{spec.dtype} [{', '.join('N' if size < 0 else str(size) for size in spec.shape)}]"


def wait(client: Client, options: argparse.Namespace) -> int:
    """Wait until the model is available; print its version."""
    print(client.wait_until_ready(options.timeout, version=options.version))
    return 0


def reload(client: Client, options: argparse.Namespace) -> int:
    """Have one server serve what another models.config says."""
    if "," in options.address:
        raise UsageError("reload is for one server: name one --address, and then the next")
    try:
        text = Path(options.config).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{options.config}: cannot be read: {error}") from error
    client.reload_config(text)
    return 0


def bench(client: Client, options: argparse.Namespace) -> int:
    """Measure how many images a second the server classifies, and how fast."""
    names = _sources(options.images)[0] if options.images else []
    code: int = _bench_command().bench(client, options, names)
    return code


def tune(options: argparse.Namespace) -> int:
    """Find the batching parameters and flags with which a server answers most."""
    names = _sources(options.images)[0] if options.images else []
    code: int = _bench_command().tune(options, names)
    return code


def plan(options: argparse.Namespace) -> int:
    """Say how many replicas a rate takes, from the report of a benchmark of one."""
    code: int = _bench_command().plan(options)
    return code


def compare(options: argparse.Namespace) -> int:
    """Compare two reports of a benchmark; the exit code is 1 for a regression."""
    code: int = _bench_command().compare(options)
    return code


def canary(stable: Client, candidate: Client, options: argparse.Namespace) -> int:
    """Say whether a canary may be promoted, beside stable: errors, latency, answers."""
    names = _sources(options.images)[0] if options.images else []
    code: int = _bench_command().canary(stable, candidate, options, names)
    return code


def _bench_command() -> Any:
    try:
        from tfs_client.bench import command
    except ImportError as error:
        raise UsageError(f"benchmarks need {error.name}: pip install 'tfs-client[bench]'") from None
    return command
