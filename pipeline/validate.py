"""The gate: does this exact export deserve traffic?

    python -m pipeline validate [--run runs/…] [--repository models] [--floor 0.9 …]

serves a copy of the export, and beside it the version now `stable`, sends both real requests,
prints a line per check, and writes `validation.json` into the run folder. The exit code is 1 when
the export is refused. Preset best on Fashion-MNIST takes two minutes on two busy cores, three with
a stable version beside it, most of them for accuracy.
"""

import concurrent.futures
import contextlib
import functools
import itertools
import json
import math
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import tensorflow as tf
from tfs_client import Classification, Client, ServerError, TFSError
from tfs_client.bench import servers
from tqdm import tqdm

from pipeline import contract, files, labels, local_server, preprocessing, publish, samples
from pipeline.config import MODEL_NAME
from pipeline.contract import Answers, Pictures
from pipeline.dataset import Dataset
from pipeline.errors import PipelineError, reason
from pipeline.local_server import Server
from pipeline.repository import open_repository
from pipeline.run import Run
from pipeline.verdict import NO_STABLE, Check, Thresholds, Verdict

EMBEDDED = "python -m serving"
GOLDEN_IMAGES = 31  # with the junk after them no more than a server takes in one request
TOLERANCE = 1e-3  # servers merge requests into batches, and a batch's size changes the last digits
BATCH = 32
IN_FLIGHT = 4
WARM_UP = 10
TURNS = 60
LATENCY_SECONDS = 60.0
Image = tuple[bytes, int]


def validate(
    run: Run,
    data: Dataset | PipelineError,
    repository: Path | str,
    thresholds: Thresholds,
    server_command: str | None = None,
) -> Verdict:
    """Judge a run's export; leaves the verdict in the run folder.

    Args:
        run: with an export.
        data: what to measure accuracy on, or why there is nothing.
        repository: where the version now stable is, to compare with: a path or an address.
        thresholds: what to ask.
        server_command: in place of the embedded server, see `local_server.command_line`.

    Raises:
        PipelineError: there is no export, no such server command, or what is labelled stable is
            not there.
    """
    if not (run.export / publish.MANIFEST).is_file():
        raise PipelineError(f"no export at {run.export}: make one with `make export`")
    with tempfile.TemporaryDirectory(prefix="googlenet-gate-") as scratch:
        baseline = _stable(repository, Path(scratch) / "stable")
        copy = _version(
            Path(scratch) / "candidate", "1", functools.partial(shutil.copytree, run.export)
        )
        subject = _Subject(run, copy, data, baseline, thresholds, server_command)
        found = Verdict(
            tuple(_checks(subject, Path(scratch))),
            files.sha256(copy / publish.MANIFEST),
            int(baseline.name) if baseline else None,
            _manifest_sum(baseline) if baseline else None,
            server_command or EMBEDDED,
        )
    found.write(run.validation)
    print(found.table())
    print(f"{'blessed' if found.blessed else 'REFUSED'}: {run.validation}")
    return found


@dataclass(frozen=True)
class _Subject:
    """What is judged, by what."""

    run: Run
    copy: Path
    data: Dataset | PipelineError
    baseline: Path | None
    thresholds: Thresholds
    command: str | None


@dataclass(frozen=True)
class _Servers:
    """The export's server and the stable version's."""

    candidate: Server
    stable: Server | None

    @property
    def all(self) -> list[Server]:
        return [self.candidate, *([self.stable] if self.stable else [])]

    @property
    def clients(self) -> list[Client]:
        return [server.client for server in self.all]


def _checks(subject: _Subject, scratch: Path) -> Iterator[Check]:
    """All checks, up to the first that makes the rest pointless."""
    files = _files(subject)
    yield files
    if not files.passed:
        return
    with contextlib.ExitStack() as stack:
        candidate, started = _start(stack, "server", scratch / "candidate", subject.command)
        yield started
        if candidate is None:
            return
        signatures = list(_guarded("signatures", _signatures(candidate.client, subject.run)))
        yield from signatures
        if not all(check.passed for check in signatures):
            return
        beside = None
        if subject.baseline:
            name = "stable version's server"
            beside, started = _start(stack, name, scratch / "stable", subject.command)
            if beside is None:
                yield started
                return
        yield from _measurements(subject, _Servers(candidate, beside))


def _measurements(subject: _Subject, servers: _Servers) -> Iterator[Check]:
    """What takes requests; memory last, after all of them."""
    pictures = _pictures(subject)
    yield from _guarded("golden answers", _golden(servers, subject.copy, pictures))
    yield from _guarded("accuracy", _accuracy(subject, servers))
    limit = subject.thresholds.latency_ratio
    yield from _guarded("latency", _latency(servers.clients, pictures.encoded, limit))
    yield _memory(servers, subject.thresholds.memory_ratio)


def _guarded(name: str, checks: Iterator[Check]) -> Iterator[Check]:
    """A request that fails speaks against the export."""
    try:
        yield from checks
    except grpc.RpcError as error:
        words = f"{error.code().name}: {error.details()}"
        yield Check(name, False, detail=f"a request failed: {words}")
    except (TFSError, tf.errors.OpError) as error:
        yield Check(name, False, detail=f"a request failed: {reason(error)}")


# --- what is served


def _stable(repository: Path | str, scratch: Path) -> Path | None:
    """A copy of the version that the repository's models.config labels stable, if one is."""
    store = open_repository(repository)
    number = labels.read(store).labels.get("stable")
    if number is None:
        return None
    if number not in store.versions():
        raise PipelineError(
            f"{store.place}/{labels.CONFIG} labels version {number} stable, which is not there: "
            "promote another"
        )
    return _version(scratch, str(number), functools.partial(store.fetch, number))


def _manifest_sum(version: Path) -> str | None:
    """None where a version has no manifest."""
    manifest = version / publish.MANIFEST
    return files.sha256(manifest) if manifest.is_file() else None


def _version(repository: Path, number: str, fetch: Callable[[Path], object]) -> Path:
    """A repository of one version; a copy, since links may not lead into a container."""
    version = repository / MODEL_NAME / number
    version.parent.mkdir(parents=True)
    fetch(version)
    shutil.copy(local_server.BATCHING_CONFIG, repository)
    repository.parent.chmod(0o755)  # mkdtemp's is for the owner alone; servers run as somebody else
    return version


def _files(subject: _Subject) -> Check:
    """The copy is compared, not the original: what was compared is what is served."""
    try:
        publish.check(subject.copy)
    except PipelineError as error:
        text = str(error).replace(str(subject.copy), str(subject.run.export))
        return Check("files", False, detail=text)
    return Check(
        "files",
        True,
        len(files.checksums(subject.copy)),
        "the manifest",
        "the bytes that the manifest names",
    )


def _start(
    stack: contextlib.ExitStack, name: str, repository: Path, command: str | None
) -> tuple[Server | None, Check]:
    begun = time.monotonic()
    context = local_server.server(repository, "--max_num_load_retries=0", command=command)
    limit = f"≤ {servers.START_SECONDS:g} s"
    try:
        server = stack.enter_context(context)
    except local_server.StartError as error:
        return None, Check(name, False, None, limit, str(error))
    seconds = time.monotonic() - begun
    return server, Check(name, True, round(seconds, 1), limit, "seconds until available")


# --- signatures and golden answers


def _signatures(client: Client, run: Run) -> Iterator[Check]:
    wanted = contract.promised(len(run.class_names))
    broken = contract.broken_promises(wanted, client.metadata().signatures)
    detail = "; ".join(broken) or ", ".join(wanted)
    yield Check("signatures", not broken, f"{len(broken)} differences", "0 differences", detail)


def _pictures(subject: _Subject) -> Pictures:
    """Test images; noise where there are none. Every other is a JPEG."""
    if isinstance(subject.data, PipelineError):
        random = np.random.default_rng(1)
        size = subject.run.config.image_size
        images = random.integers(0, 256, (GOLDEN_IMAGES, size, size, 3), np.uint8)
        files = [tf.io.encode_png(image).numpy() for image in images]
    else:
        files = [image for image, _ in samples.encoded(subject.data, GOLDEN_IMAGES)]
    pixels = [preprocessing.decode(tf.constant(file)).numpy() for file in files]
    files[1::2] = [tf.io.encode_jpeg(image).numpy() for image in pixels[1::2]]
    pixels[1::2] = [preprocessing.decode(tf.constant(file)).numpy() for file in files[1::2]]
    return Pictures(tuple(files), tuple(pixels))


def _golden(servers: _Servers, copy: Path, pictures: Pictures) -> Iterator[Check]:
    served = contract.ask_server(servers.candidate.client.address, pictures)
    if servers.stable:  # its answers may differ; its memory is compared after the same requests
        with contextlib.suppress(grpc.RpcError):
            contract.ask_server(servers.stable.client.address, pictures)
    offline = contract.ask_here(tf.saved_model.load(str(copy)), pictures)
    differences = dict(_differences(served, offline))
    # Not `>`, which is false of NaN.
    faults = [what for what, size in differences.items() if not size <= TOLERANCE]
    worst = max(differences.values(), key=lambda size: math.inf if math.isnan(size) else size)
    yield Check(
        "golden answers",
        not faults,
        float(worst) if math.isfinite(worst) else "no number",
        f"≤ {TOLERANCE:g}",
        f"difference: {'; '.join(faults)}"
        if faults
        else f"largest difference, {len(pictures.encoded)} images, all signatures",
    )


def _differences(served: Answers, offline: Answers) -> Iterator[tuple[str, float]]:
    """What was compared, and how far it is apart."""
    for name in served:
        yield from _compared(f"{name} served and offline", served[name], offline[name])
    good = {name: values[:-1] for name, values in served["serving_default"].items()}
    yield from _compared("predict_images and serving_default", served["predict_images"], good)
    shared = {name: served["serving_default"][name] for name in served["classify"]}
    yield from _compared("classify and serving_default", served["classify"], shared)
    for name in ("serving_default", "embed"):
        valid = served[name]["valid"]
        yield f"{name}: valid is false of an image", float(not valid[:-1].all())
        yield f"{name}: valid is true of bytes that are no image", float(valid[-1])


def _compared(
    what: str, one: dict[str, np.ndarray], other: dict[str, np.ndarray]
) -> Iterator[tuple[str, float]]:
    for name, b in other.items():
        a = one[name]
        if a.shape != b.shape:
            yield f"{what}: {name}, {a.shape} and {b.shape}", math.inf
        elif name == "classes":
            # Two labels that are nearly tied may change places: the lead says how wrong that is.
            lead = other["scores"][:, 0] - other["scores"][:, 1]
            yield f"{what}: {name}", float(lead[a[:, 0] != b[:, 0]].max(initial=0))
        elif b.dtype == bool:
            yield f"{what}: {name}", float((a != b).any())
        else:
            yield f"{what}: {name}", float((np.abs(a - b) / np.maximum(1, np.abs(b))).max())


# --- accuracy


def _accuracy(subject: _Subject, servers: _Servers) -> Iterator[Check]:
    floor = subject.thresholds.floor_of(len(subject.run.class_names))
    no_data = _no_data(subject)
    if no_data:
        words = "name its images with --dataset, or `publish --force` does without"
        detail = f"not measured: {no_data}; {words}"
        yield Check("accuracy", False, None, f"≥ {floor:.4f}", detail)
        return
    assert isinstance(subject.data, Dataset)
    accuracies, count = _measure(servers.clients, subject.data, subject.thresholds.images)
    measured = accuracies[0]
    words = f"of {count:,} test images"
    below = "" if measured >= floor else ", below the floor"
    yield Check("accuracy", not below, measured, f"≥ {floor:.4f}", f"{measured:.4f} {words}{below}")
    yield _against_stable(subject, accuracies)


def _no_data(subject: _Subject) -> str:
    if isinstance(subject.data, PipelineError):
        return str(subject.data)
    if subject.data.class_names != subject.run.class_names:
        return f"dataset {subject.data.name} has other classes than run {subject.run.path}"
    return ""


def _against_stable(subject: _Subject, accuracies: list[float]) -> Check:
    name, margin = "accuracy lost", subject.thresholds.margin
    if subject.baseline is None:
        return Check(name, True, None, f"≤ {margin:.4f}", NO_STABLE)
    who = f"stable version {subject.baseline.name}"
    if _class_names(subject.baseline) != subject.run.class_names:
        detail = f"{who} has other classes: `publish --force` if that is meant"
        return Check(name, False, None, f"≤ {margin:.4f}", detail)
    lost = round(accuracies[1] - accuracies[0], 6)
    detail = f"{accuracies[0]:.4f}, {who} {accuracies[1]:.4f} on the same images"
    return Check(name, lost <= margin, lost, f"≤ {margin:.4f}", detail)


def _class_names(version: Path) -> tuple[str, ...]:
    """Empty where a version does not say."""
    try:
        manifest = json.loads((version / publish.MANIFEST).read_text())
        return tuple(manifest["class_names"])
    except (OSError, ValueError, KeyError, TypeError):
        return ()


def _measure(clients: list[Client], data: Dataset, limit: int) -> tuple[list[float], int]:
    """Share of right answers of each client on the same images, and the number of these."""
    right, count = [0] * len(clients), 0
    with (
        concurrent.futures.ThreadPoolExecutor(IN_FLIGHT) as pool,
        tqdm(desc="measuring", total=min(limit, data.test.size), disable=None, leave=False) as bar,
    ):
        # By and by: the files of ten thousand photos do not fit into memory.
        for window in _chunks(samples.encoded(data, limit), BATCH * IN_FLIGHT):
            jobs = list(itertools.product(range(len(clients)), _chunks(window, BATCH)))
            correct = pool.map(lambda job: _right(clients[job[0]], data.class_names, job[1]), jobs)
            for (number, _), more in zip(jobs, correct, strict=True):
                right[number] += more
            count += len(window)
            bar.update(len(window))
    return [total / count for total in right], count


def _right(client: Client, class_names: tuple[str, ...], images: list[Image]) -> int:
    files = [file for file, _ in images]
    right = 0
    answers = client.classify(files, errors="return", timeout=contract.TIMEOUT)
    for answer, (_, label) in zip(answers, images, strict=True):
        if isinstance(answer, ServerError):
            raise answer
        right += isinstance(answer, Classification) and answer.label == class_names[label]
    return right


def _chunks(images: Iterable[Image], size: int) -> Iterator[list[Image]]:
    iterator = iter(images)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk


# --- latency and memory


def _latency(clients: list[Client], images: tuple[bytes, ...], limit: float) -> Iterator[Check]:
    _turns(clients, images, WARM_UP)
    found = _latency_check(_turns(clients, images, TURNS), limit)
    if not found.passed:
        first, found = found, _latency_check(_turns(clients, images, TURNS), limit)
        again = f"; measured twice, first {first.measured:.2f}"
        found = Check(found.check, found.passed, found.measured, found.limit, found.detail + again)
    yield found


def _latency_check(medians: list[float], limit: float) -> Check:
    return _ratio_check("latency", medians, limit, lambda ms: f"{ms:.2f} ms an image")


def _turns(clients: list[Client], images: tuple[bytes, ...], turns: int) -> list[float]:
    """Median milliseconds of a request of one image by each client, in turns."""
    seconds: list[list[float]] = [[] for _ in clients]
    end = time.monotonic() + LATENCY_SECONDS
    for turn, image in enumerate(itertools.islice(itertools.cycle(images), turns)):
        order = list(zip(clients, seconds, strict=True))
        for client, times in order[:: 1 if turn % 2 else -1]:  # nobody is always second
            begun = time.perf_counter()
            client.classify(image)
            times.append(time.perf_counter() - begun)
        if time.monotonic() > end:
            break
    return [1e3 * statistics.median(times) for times in seconds]


def _memory(servers: _Servers, limit: float) -> Check:
    peaks = [server.peak_memory() for server in servers.all]
    measured = [float(peak) for peak in peaks if peak is not None]
    if len(measured) < len(peaks):
        return Check("memory", True, None, f"≤ {limit:g}", "the server is no process of ours")
    return _ratio_check("memory", measured, limit, lambda peak: f"{peak / 2**20:,.0f} MiB peak")


def _ratio_check(
    name: str, values: list[float], limit: float, text: Callable[[float], str]
) -> Check:
    """Hold the first value against the second, the stable version's, if there is one."""
    if len(values) < 2:
        return Check(name, True, None, f"≤ {limit:g}", f"{text(values[0])}; {NO_STABLE}")
    ratio = round(values[0] / values[1], 3)
    detail = f"× stable: {text(values[0])}, stable {text(values[1])}"
    return Check(name, ratio <= limit, ratio, f"≤ {limit:g}", detail)
