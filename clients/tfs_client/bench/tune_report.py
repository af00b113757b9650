"""What came of a search for settings -> Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from tfs_client.bench.tune import Scenarios, Tuning, shares


def report(
    tunings: Sequence[Tuning], compared: dict[str, Scenarios], facts: dict[str, str]
) -> Iterator[str]:
    """Lines of Markdown."""
    yield "# Tuning" if tunings else "# A setting beside what nobody tuned"
    yield ""
    yield from (f"- {name}: {value}" for name, value in facts.items())
    for tuning in tunings:
        yield ""
        yield f"## {tuning.cores} core{'s' if tuning.cores > 1 else ''}"
        yield ""
        limit = f"{1e3 * tuning.limit:g} ms"
        yield f"Images a second with p99 within {limit}, in turns: the median with"
        yield "the least and the most, and the median of what each got ÷ the best of its round."
        for turns in tuning.turns:
            yield ""
            yield "| setting | images/s | ÷ the best |"
            yield "|---|---|---|"
            for setting, share in sorted(shares(turns).items(), key=lambda item: -item[1]):
                mark = " **chosen**" if setting == tuning.best else ""
                rates = turns[setting]
                spread = f"{statistics.median(rates):.1f} ({min(rates):.1f} to {max(rates):.1f})"
                yield f"| {setting}{mark} | {spread} | {share:.2f} |"
        yield ""
        yield "The frontier, of all settings and numbers of callers, medians of the rounds:"
        yield ""
        yield "| images/s | p99 ms | callers | setting |"
        yield "|---|---|---|---|"
        for point in tuning.frontier():
            yield (
                f"| {point.images_per_second:.1f} | {1e3 * point.tail:.0f} | {point.callers} | "
                f"{point.setting} |"
            )
    yield from _compared(compared)


def _compared(compared: dict[str, Scenarios]) -> Iterator[str]:
    tuned = compared["tuned"]
    yield ""
    yield "## Beside what nobody tuned"
    yield ""
    yield "Medians of rounds in which the servers take turns; in brackets the tuned server's figure"
    yield "÷ this one's, by round: the median, and the least and the most."
    yield ""
    yield "| server | SingleStream p90 ms | Server requests/s | Offline images/s |"
    yield "|---|---|---|---|"
    for name, found in compared.items():
        cells = [
            _cell(found.single_stream, tuned.single_stream, 1e3),
            _cell(found.server, tuned.server, 1),
            _cell(found.offline, tuned.offline, 1),
        ]
        yield f"| {name} | {' | '.join(cells)} |"


def _cell(values: Sequence[float], tuned: Sequence[float], scale: float) -> str:
    median = f"{scale * statistics.median(values):.1f}"
    ratios = [t / value for t, value in zip(tuned, values, strict=True) if value]
    if values is tuned or not ratios:
        return median
    low, middle, high = min(ratios), statistics.median(ratios), max(ratios)
    return f"{median} ({middle:.2f}, {low:.2f} to {high:.2f})"
