"""Prometheus, as the compose file has it, scrapes the container; an alert fires when it should."""

import time

from tests.containers import prometheus
from tests.containers.load import load

ALERT = "GoogLeNetNoAvailableVersion"
FIRES_SECONDS = 420  # 2 min in which OK must stand still, 2 min pending, and two intervals of each


def test_prometheus_scrapes_and_an_alert_fires(start_pod, models, tmp_path, show):
    pod = start_pod()
    pod.wait()
    with prometheus.scraping(pod.ports["rest"], tmp_path / "prometheus") as running:
        with load(pod.address, callers=2, pause=0.4) as done:
            time.sleep(75)  # a rate needs two scrapes, 15 s apart, and the rules an evaluation
        assert running.targets() == ["up"]
        rate = running.value("namespace_track:googlenet_calls:rate5m")
        errors = running.value("namespace_track:googlenet_errors:ratio_rate5m")
        assert rate > 0
        assert errors == 0
        assert not running.alerts()
        gone = time.monotonic()
        (models / "googlenet/1").rename(models / "googlenet/.gone")
        fired = _until(running, "firing", FIRES_SECONDS) - gone
        (models / "googlenet/.gone").rename(models / "googlenet/1")
        back = time.monotonic()
        ended = _until(running, None, 180) - back
    show(
        f"Prometheus {running.version}: {done}; it saw {rate:.1f} calls/s and {errors:.0%} errors; "
        f"{ALERT} fired {fired:.0f} s after the model was taken away and ended {ended:.0f} s after "
        f"it came back"
    )


def _until(running, state: str | None, seconds: float) -> float:
    deadline = time.monotonic() + seconds
    while (alerts := running.alerts()).get(ALERT) != state:
        assert time.monotonic() < deadline, alerts
        time.sleep(1)
    return time.monotonic()
