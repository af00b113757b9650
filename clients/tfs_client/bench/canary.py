"""A canary beside stable -> promote, hold or roll back, with the numbers.

    tfs canary localhost:8500 localhost:8600 --images samples/ --seconds 60

Each image is sent to both servers, and their answers compared. Then both servers' metrics are read
at even times of one window: what they counted in it is what callers sent. Everything is held
against its limit with a 95 % interval:

    errors        the canary's share of failed calls less stable's: Newcombe's interval of a
                  difference (1998, his method 10), which holds for few failures and for none
    p50, p99      the canary's latency ÷ stable's, from the histograms' buckets. The window's parts
                  are drawn again with replacement, the same ones of both, since what disturbs one
                  may disturb both (the bootstrap, as in `compare`)
    disagreement  share of the images whose best class is another: Wilson's interval (1927)

An interval all beyond the limit says roll back, one all within it promote, any other hold.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tfs_client._client import Client
from tfs_client._errors import ServerError, TFSError
from tfs_client._tensors import Array
from tfs_client.bench import payloads, traffic
from tfs_client.bench.compare import DRAWS, interval
from tfs_client.bench.intervals import CONFIDENCE, LONGEST, newcombe, times, wilson
from tfs_client.bench.traffic import Parts
from tfs_client.bench.windows import SAMPLES_BEYOND

PROMOTE, ROLL_BACK, HOLD = "promote", "roll back", "hold"
PERCENTILES = (50.0, 99.0)
LEAST_PARTS = 5  # of the window with answers of both, for drawing them to say anything
_HEADER = ("check", "stable", "canary", f"{CONFIDENCE:g} % interval", "limit", "verdict", "")


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        check: its name.
        stable: what was found of stable; None if nothing was.
        canary: the same of the canary.
        low: of the interval of what is held against the limit: the difference of shares, the ratio
            of latencies, a share; None where too little is known.
        high: the same.
        limit: the most that it may be.
        detail: what it rests on, and what is missing.
        form: how its numbers are printed.
    """

    check: str
    stable: float | None
    canary: float | None
    low: float | None
    high: float | None
    limit: float
    detail: str
    form: str

    @property
    def verdict(self) -> str:
        """What it speaks for."""
        return (
            HOLD if self.low is None or self.high is None else _of(self.low, self.high, self.limit)
        )

    def row(self) -> tuple[str, ...]:
        """Its cells in the table."""
        stable, canary, low, high, limit = (
            "-" if number is None else format(number, self.form)
            for number in (self.stable, self.canary, self.low, self.high, self.limit)
        )
        between = "-" if self.low is None else f"{low} to {high}"
        return self.check, stable, canary, between, f"≤ {limit}", self.verdict, self.detail


def _of(low: float, high: float, limit: float) -> str:
    return ROLL_BACK if low > limit else PROMOTE if high <= limit else HOLD


def verdict(checks: Sequence[Check]) -> str:
    """Roll back if a limit is surely broken, promote if all are surely held, and else hold."""
    found = [check.verdict for check in checks]
    return next(word for word in (ROLL_BACK, HOLD, PROMOTE) if word in found)


def table(checks: Sequence[Check]) -> str:
    """A line per check."""
    rows = [_HEADER, *(check.row() for check in checks)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)][:-1]
    return "\n".join("  ".join([*map(str.ljust, row, widths), row[-1]]).rstrip() for row in rows)


def to_json(checks: Sequence[Check]) -> dict[str, Any]:
    """As a file has it."""
    rows = [asdict(check) | {"verdict": check.verdict} for check in checks]
    return {"verdict": verdict(checks), "confidence_percent": CONFIDENCE, "checks": rows}


# --- answers to the same images ---


def disagreement(
    stable: Client, canary: Client, kind: str, items: Sequence[Any], to: Sequence[str], limit: float
) -> Check:
    """Send each image to both.

    Args:
        stable: its client.
        canary: the same.
        kind: of `payloads.DTYPES`.
        items: the images, see `payloads.inputs`.
        to: signature and input.
        limit: share that may differ.

    Raises:
        TFSError: stable does not answer, or its answers have neither classes nor probabilities.
    """
    different, apart = 0, list[float]()
    failed: Counter[str] = Counter()
    for item in items:
        tensors = {to[1]: payloads.stack([item], kind)}
        expected = stable.predict(tensors, signature=to[0]).outputs
        try:
            found = canary.predict(tensors, signature=to[0]).outputs
        except ServerError as error:
            failed[error.code.name] += 1
            continue
        different += _best(found) != _best(expected)
        ours, theirs = found.get("probabilities"), expected.get("probabilities")
        if ours is not None and theirs is not None and ours.shape == theirs.shape:
            apart.append(float(np.abs(ours - theirs).max()))
    share = different + failed.total(), len(items)
    low, high = wilson(share)
    detail = f"{share[0]} of {share[1]} images"
    if apart:
        detail += f"; probabilities differ by up to {max(apart):.4f}"
    if failed:
        detail += f"; failed: {_listed(failed)}"
    if _of(low, high, limit) == HOLD:
        longer = times(lambda only: _of(*wilson(only), limit) != HOLD, share)
        detail += f"; {_more(longer, len(items), 'images')}"
    return Check("disagreement", None, share[0] / share[1], low, high, limit, detail, ".2%")


def _best(outputs: dict[str, Array]) -> Any:
    """The best class of the one image; None for no image."""
    if "valid" in outputs and not outputs["valid"].all():
        return None
    if "classes" in outputs:
        return outputs["classes"][0, 0]
    if "probabilities" in outputs:
        return int(np.argmax(outputs["probabilities"]))
    raise TFSError(f"the answers have neither classes nor probabilities, but {', '.join(outputs)}")


# --- what callers got ---


def errors(parts: Parts, limit: float, seconds: float) -> Check:
    """The calls that failed, in a window of so many seconds."""
    found = traffic.failures(parts)
    stable, canary = ((failed.total(), count) for failed, count in found)
    detail = f"{canary[0]:,} of {canary[1]:,}; stable {stable[0]:,} of {stable[1]:,}"
    if canary[0]:
        detail += f"; canary's: {_listed(found[1][0])}"
    low, high = newcombe(stable, canary) if stable[1] and canary[1] else (None, None)
    if low is None or high is None or _of(low, high, limit) == HOLD:
        known = [share if share[1] else (0, 1) for share in (stable, canary)]
        longer = times(lambda *both: _of(*newcombe(*both), limit) != HOLD, *known)
        detail += f"; {_more_calls(longer, (stable[1], canary[1]), seconds)}"
    shares = [bad / count if count else None for bad, count in (stable, canary)]
    return Check("errors", shares[0], shares[1], low, high, limit, detail, ".2%")


def latencies(parts: Parts, limit: float, seconds: float, seed: int = 0) -> Iterator[Check]:
    """Of the calls that were answered."""
    limits, below = traffic.histograms(parts)
    counts = int(below[0][:, -1].sum()), int(below[1][:, -1].sum())
    called = sum(1 for each in zip(below[0][:, -1], below[1][:, -1], strict=True) if all(each))
    weights = np.random.default_rng(seed).multinomial(
        len(parts), [1 / len(parts)] * len(parts), DRAWS
    )
    drawn = [np.vstack([each.sum(axis=0), weights @ each]) for each in below]  # all, and each draw
    for q in PERCENTILES:
        name, needed = f"p{q:g} ms", math.ceil(SAMPLES_BEYOND / (1 - q / 100) - 1e-9)
        if min(counts) < needed:
            detail = _more_calls(needed / max(1, min(counts)), counts, seconds)
            yield Check(name, None, None, None, None, limit, detail, ".2f")
            continue
        stable, canary = (traffic.quantile(limits, each, q) / 1e3 for each in drawn)
        ratio = float(canary[0] / stable[0])
        low, high = interval(canary[1:] / stable[1:]) if called >= LEAST_PARTS else (None, None)
        detail = f"{ratio:.2f} × stable"
        if low is None or high is None:
            detail += f"; both were called in {called} of {len(parts)} parts of the window only"
        elif _of(low, high, limit) == HOLD:
            room = math.log(limit / ratio)
            width = math.log((high if room > 0 else low) / ratio)
            longer = (width / room) ** 2 if room else math.inf  # widths shrink with the root
            detail += f"; {_more_calls(longer, counts, seconds)}"
        yield Check(name, float(stable[0]), float(canary[0]), low, high, limit, detail, ".2f")


# --- what is missing ---


def _more(times: float, count: int, what: str) -> str:
    """In words: so many times as much as there was."""
    if times > LONGEST:
        return "too near the limit to tell"
    return f"about {math.ceil(max(1, count) * times) - count:,} more {what} would tell"


def _more_calls(times: float, counts: tuple[int, int], seconds: float) -> str:
    stable, canary = counts
    rarer = "the canary" if canary <= stable else "stable"
    text = _more(times, min(counts), f"calls to {rarer}")
    at_this_rate = min(counts) and times <= LONGEST
    return f"{text}, {seconds * (times - 1):.0f} s at this rate" if at_this_rate else text


def _listed(failed: Counter[str]) -> str:
    return ", ".join(f"{status} {count:,}" for status, count in failed.most_common())
