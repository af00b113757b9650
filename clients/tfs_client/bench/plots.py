"""A report -> pictures, and one page that has them and the table."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Iterator
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from tfs_client.bench import report as reports
from tfs_client.bench.measure import Measurement, together
from tfs_client.bench.report import Report
from tfs_client.bench.windows import SAMPLES_BEYOND

matplotlib.use("Agg")
_SIZE = (7.5, 4.2)
_QUANTILES = (50.0, 90.0, 99.0)
_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: auto; padding: 1rem }}
pre {{ overflow-x: auto; background: #f4f4f4; padding: 1rem }}
img {{ max-width: 100% }}
td {{ padding: 0 1rem 0 0; vertical-align: top }}
</style>
<h1>{title}</h1>
<pre>{table}</pre>
{scenarios}{pictures}
<h2>Measured on</h2>
<table>{machine}</table>
"""


def png(draw: Callable[[Any, Report], None], report: Report) -> bytes:
    """A picture."""
    figure = Figure(figsize=_SIZE, layout="constrained")
    draw(figure.subplots(), report)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    return content.getvalue()


def throughput(axes: Any, report: Report) -> None:
    """Latency against throughput, a point for each load."""
    measured = list(_measured(report))
    for q in _QUANTILES:
        points = [
            (each.whole.images_per_second, 1e3 * latency, each.load)
            for each in measured
            if (latency := each.whole.percentile(q)) is not None
        ]
        if not points:
            continue
        axes.plot([x for x, _, _ in points], [y for _, y, _ in points], "o-", label=f"p{q:g}")
        if q == _QUANTILES[0]:
            for x, y, load in points:
                axes.annotate(load, (x, y), textcoords="offset points", xytext=(4, -10), fontsize=7)
    axes.set(xlabel="images/s", ylabel="latency, ms", title="Latency against throughput")
    axes.set_ylim(bottom=0)
    if axes.lines:
        axes.legend()


def percentiles(axes: Any, report: Report) -> None:
    """Latency of the slowest one in so many, to where five requests lie beyond."""
    for each in _measured(report):
        histogram = each.whole.latency
        one_in, latencies, nth = [], [], 2.0
        while histogram.total_count >= SAMPLES_BEYOND * nth:
            one_in.append(nth)
            latencies.append(histogram.get_value_at_percentile(100 - 100 / nth) / 1e3)
            nth *= 1.2
        if one_in:
            axes.plot(one_in, latencies, label=each.load)
    axes.set_xscale("log")
    axes.set(
        xlabel="one request in … is slower",
        ylabel="latency, ms",
        title="Percentiles (2: the median; 100: p99)",
    )
    axes.set_ylim(bottom=0)
    if axes.lines:
        axes.legend(fontsize=8)


def time_line(axes: Any, report: Report) -> None:
    """Images a second by window, in the order in which they were measured."""
    start = 0.0
    for repeats in report.measurements:
        for each in repeats:
            moments, rates = [], []
            for window in each.windows:
                moments += [start, start + window.seconds]
                rates += [window.images_per_second] * 2
                start += window.seconds
            axes.plot(moments, rates, label=each.load)
            start += each.windows[-1].seconds  # a gap
    axes.set(xlabel="seconds measured", ylabel="images/s", title="Time line")
    axes.set_ylim(bottom=0)
    handles = {label: line for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    axes.legend(handles.values(), handles.keys(), fontsize=8)


PICTURES = {"throughput": throughput, "percentiles": percentiles, "time-line": time_line}


def _measured(report: Report) -> Iterator[Measurement]:
    return (together(repeats) for repeats in report.measurements)


def page(report: Report, pictures: dict[str, bytes]) -> str:
    """All of it as HTML in one file."""
    server = report.server
    rows = "\n".join([reports.HEADER, *map(reports.row, report.measurements)])
    found = "".join(f"<p>{html.escape(str(x))}</p>\n" for x in report.scenarios)
    images = (
        f'<p><img alt="{name}" src="data:image/png;base64,{base64.b64encode(content).decode()}">'
        for name, content in pictures.items()
    )
    facts = {**report.machine, **{name: str(value) for name, value in report.settings.items()}}
    return _PAGE.format(
        title=html.escape(f"{server['model']} version {server['version']} at {server['address']}"),
        table=html.escape(rows),
        scenarios=found,
        pictures="\n".join(images),
        machine="\n".join(
            f"<tr><td>{html.escape(name)}<td>{html.escape(value)}" for name, value in facts.items()
        ),
    )
