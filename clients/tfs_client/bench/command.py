"""`tfs bench`, `canary`, `tune`, `plan`: options -> loads; measurements -> prints and files."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tfs_client._client import Client
from tfs_client._errors import TFSError
from tfs_client.bench import (
    loads,
    machine,
    measure,
    payloads,
    report,
    scenarios,
    sender,
    server_side,
)
from tfs_client.bench.batching import Batching
from tfs_client.bench.loads import Load
from tfs_client.bench.measure import Measurement, Senders
from tfs_client.bench.report import Report
from tfs_client.bench.windows import Window

DEFAULT_CALLERS = (1, 8, 32)
HOLD = 4  # as an exit code


def bench(client: Client, options: argparse.Namespace, images: Sequence[str]) -> int:
    """Measure, print the table, and write the report if asked to.

    Returns:
        0; or 1 if a request failed or was answered wrongly, or a measurement is INVALID.
    """
    written = Report(machine.describe(), _server(client), _settings(options, len(images)))
    print(
        f"{client.model} version {written.server['version']} at {client.address}: {_what(options)}"
    )
    print(report.HEADER)
    for batch in options.batch:
        made = payloads.make(
            client, options.payload, images, size=options.size, batch=batch,
            signature=options.signature, seed=options.seed,
        )  # fmt: skip
        with measure.senders(options.settings, made, options.senders) as senders:
            if options.scenario:
                _scenarios(senders, options, batch, written)
            else:
                _loads(senders, options, written)
    if options.output:
        write(written, options.output)
    return 1 if any(each.bad or each.invalid for row in written.measurements for each in row) else 0


def _server(client: Client) -> dict[str, object]:
    found = client.metadata()
    return {"address": client.address, "model": client.model, "version": found.version}


def _settings(options: argparse.Namespace, images: int) -> dict[str, object]:
    names = ("payload", "size", "batch", "signature", "seconds", "repeats", "senders", "seed")
    given = {name: getattr(options, name) for name in names}
    return {**given, "images": images or f"{payloads.MADE} made ones"}


def _what(options: argparse.Namespace) -> str:
    return (
        f"{options.payload} payload, windows of {options.seconds:g} s until {sender.AGREEING} agree"
    )


def _loads(senders: Senders, options: argparse.Namespace, written: Report) -> None:
    """Each load in turn, as often as asked; the repeats of one are spread over the time."""
    found = asked_for(options)
    rows: list[list[Measurement]] = [[] for _ in found]
    sides: list[dict[str, float]] = [{} for _ in found]
    for repeat in range(options.repeats):
        for position, load in enumerate(found):
            with _progress(str(load)) as on_window, _server_side(options.metrics) as side:
                rows[position].append(
                    senders.measure(
                        load, options.seconds, seed=options.seed + repeat, on_window=on_window
                    )
                )
            sides[position] = side
            if repeat == options.repeats - 1:
                print(report.row(rows[position]), flush=True)
                if side:
                    print(_side_text(side))
    written.measurements += rows
    written.server_side += sides


def asked_for(options: argparse.Namespace) -> list[Load]:
    """The loads that the options name; some callers, where they name none.

    Raises:
        TFSError: a file of timestamps cannot be read, or a burst is of no whole number.
    """
    for size, _ in options.burst or ():
        if size < 1 or size % 1:
            raise TFSError(f"--burst: {size:g} requests at once: name a whole number from 1")
    arrivals = loads.ARRIVALS[options.arrivals]
    found: list[Load] = [
        *map(loads.Closed, options.concurrency or ()),
        *(arrivals(rate) for rate in options.rate or ()),
        *(loads.Burst(int(size), every) for size, every in options.burst or ()),
    ]
    if options.steps:
        found.append(loads.Steps(options.steps))
    if options.replay:
        found.append(loads.Replay.of_file(options.replay))
    return found or list(map(loads.Closed, DEFAULT_CALLERS))


def _scenarios(senders: Senders, options: argparse.Namespace, batch: int, written: Report) -> None:
    def tell(found: Measurement) -> None:
        written.measurements.append([found])
        print(report.row([found]), flush=True)

    measuring = scenarios.measuring(senders, options.seconds, tell)
    names = scenarios.NAMES if options.scenario == "all" else (options.scenario,)
    found = written.scenarios
    if "single-stream" in names:
        found.append(scenarios.single_stream(measuring, options.seed))
    if "offline" in names or "server" in names:
        found.append(scenarios.offline(measuring, options.seed))
    if "server" in names:
        limit, highest = options.limit_ms / 1e3, found[-1].value
        found.append(
            scenarios.server(measuring, options.seconds, limit, highest, batch, options.seed)
        )
    for each in found:
        print(each, flush=True)


@contextmanager
def _progress(load: str) -> Iterator[Callable[[int, Window], None]]:
    """A line that changes, where somebody looks at it and nothing else is shown."""
    shown = bool(sys.stderr) and sys.stderr.isatty()

    def on_window(number: int, window: Window) -> None:
        if shown:
            text = f"\r{load}: window {number}, {window.images_per_second:.1f} images/s"
            print(f"{text:60}", end="", file=sys.stderr, flush=True)

    try:
        yield on_window
    finally:
        if shown:
            print(f"\r{'':60}\r", end="", file=sys.stderr, flush=True)


@contextmanager
def _server_side(url: str | None) -> Iterator[dict[str, float]]:
    found: dict[str, float] = {}
    if not url:
        yield found
        return
    before = server_side.scrape(url)
    yield found
    found.update(server_side.between(before, server_side.scrape(url)))


def _side_text(side: dict[str, float]) -> str:
    return f"{'':16} server: " + ", ".join(f"{name} {value:.1f}" for name, value in side.items())


# --- files ---


def write(written: Report, folder: Path) -> None:
    """report.json, report.csv, report.html and its pictures, each whole or not at all."""
    from tfs_client.bench import plots  # half a second

    pictures = {name: plots.png(draw, written) for name, draw in plots.PICTURES.items()}
    files = {
        "report.json": written.to_json().encode(),
        "report.csv": report.rows_of_csv(written).encode(),
        "report.html": plots.page(written, pictures).encode(),
        **{f"{name}.png": content for name, content in pictures.items()},
    }
    _write(folder, files)


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    try:
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            _replace(folder / name, content)
    except OSError as error:
        raise TFSError(f"{folder}: cannot be written to: {error.strerror}") from error


def _replace(path: Path, content: bytes) -> None:
    """Write a file aside, and put it in its place when it is whole."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with aside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


# --- compare ---


def compare(options: argparse.Namespace) -> int:
    """Print what changed between two reports.

    Returns:
        1 if a figure is worse by more than the tolerance and not by chance, or more requests fail;
        0 otherwise.
    """
    from tfs_client.bench import compare as comparing

    before, after = (Report.of_file(path) for path in (options.before, options.after))
    tolerance = options.tolerance / 100
    found = list(comparing.changes(before, after))
    print(comparing.HEADER)
    for change in found:
        print(change.row(tolerance))
    for name, each in (("before", before), ("after", after)):
        for remark in each.remarks():
            print(f"{name}, {remark}")
    failures = comparing.new_failures(before, after)
    if failures:
        print(f"{failures} requests failed or were answered wrongly, and fewer before")
    return 1 if failures or any(change.is_regression(tolerance) for change in found) else 0


# --- canary ---


def canary(
    stable: Client, candidate: Client, options: argparse.Namespace, images: Sequence[str]
) -> int:
    """Judge a canary beside stable; print the table, and write it if asked to.

    Returns:
        0 to promote it, 1 to roll back, 4 to hold: it is not sure yet.
    """
    from tfs_client.bench import canary as judging
    from tfs_client.bench import traffic

    if set(stable.address.split(",")) & set(candidate.address.split(",")):
        raise TFSError(
            f"{candidate.address} is stable's too: the canary needs a server of its own, since "
            f"TensorFlow Serving's metrics do not say which version answered"
        )
    tracks = {"stable": _server(stable), "canary": _server(candidate)}
    for name, found in tracks.items():
        print(f"{name}: {found['model']} version {found['version']} at {found['address']}")
    meters = (
        traffic.Meter(traffic.beside(stable.address, options.stable_metrics), stable.model),
        traffic.Meter(traffic.beside(candidate.address, options.canary_metrics), candidate.model),
    )
    *to, items = payloads.inputs(
        stable.metadata(), options.payload, images, size=options.size,
        signature=options.signature, seed=options.seed,
    )  # fmt: skip
    print(f"sending {len(items)} images to both, then watching {options.seconds:g} s", flush=True)
    answers = judging.disagreement(
        stable, candidate, options.payload, items, to, options.disagreement
    )
    parts = traffic.watch(meters, options.seconds)
    checks = [
        judging.errors(parts, options.errors, options.seconds),
        *judging.latencies(parts, options.latency_ratio, options.seconds, options.seed),
        answers,
    ]
    verdict = judging.verdict(checks)
    print(judging.table(checks))
    print(verdict.upper())
    if options.output:
        found = tracks | {"seconds": options.seconds} | judging.to_json(checks)
        _write(options.output.parent, {options.output.name: json.dumps(found, indent=1).encode()})
    return {judging.PROMOTE: 0, judging.ROLL_BACK: 1, judging.HOLD: HOLD}[verdict]


# --- tune ---


def tune(options: argparse.Namespace, images: Sequence[str]) -> int:
    """Search for the best settings, or take them from a file; write them, and what was measured.

    Returns:
        0.
    """
    from tfs_client.bench import tune as tuning
    from tfs_client.bench import tune_report
    from tfs_client.bench.setting import files, setting_of

    facts = machine.describe()
    cores = sorted(options.cpus or (max(1, int(machine.cpu_limit())),))
    setting = options.setting and setting_of(options.setting)
    with tempfile.TemporaryDirectory() as folder:
        bench = tuning.Bench(
            options.server,
            options.settings,
            lambda client: payloads.make(
                client, options.payload, images, size=options.size, seed=options.seed
            ),
            options.seconds,
            Path(folder),
            lambda text: print(text, flush=True),
        )
        limit = options.limit_ms / 1e3
        rounds = options.repeats
        found = [] if setting else [tuning.search(bench, each, limit, rounds) for each in cores]
        if options.output and found:
            written = files({each.cores: each.best for each in found})
            _write(options.output, {name: content.encode() for name, content in written.items()})
        best = setting or found[-1].best
        compared = tuning.beside_untuned(bench, best, cores[-1], limit, rounds)
    text = "\n".join(tune_report.report(found, compared, facts)) + "\n"
    print(text)
    if options.report:
        _write(options.report.parent, {options.report.name: text.encode()})
    return 0


# --- plan ---


def plan(options: argparse.Namespace) -> int:
    """Print how many replicas a rate takes, and how far the prediction is from what was measured.

    Returns:
        0.
    """
    from tfs_client.bench import plan as planning  # simpy

    measured = Report.of_file(options.report)
    batching = Batching.of_file(options.batching) if options.batching else None
    print(planning.plan(measured, batching, options.rate, options.p99_ms / 1e3))
    for line in (*planning.checks(measured, batching), *measured.remarks()):
        print(line)
    return 0
