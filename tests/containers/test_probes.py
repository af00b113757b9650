"""Probes turn ready when a version is AVAILABLE, and only then; a missing one restarts nothing."""

import shutil
import threading
import time

import pytest
from tfs_client import Client, TFSError

pytestmark = pytest.mark.timeout(600)
WITHOUT_SECONDS = 90  # longer than liveness would bear: 6 × 10 s


def test_ready_is_available(start_pod, models, version, show):
    """From before there is a model to after it is taken away."""
    shutil.rmtree(models / "googlenet/1")
    pod = start_pod()
    lies: list[str] = []
    over = threading.Event()
    watch = threading.Thread(target=_watch, args=(pod, lies, over))
    watch.start()
    try:
        time.sleep(12)  # two looks of the startup probe
        assert not pod.ready
        assert pod.settled("startupProbe", ok=False)
        assert not pod.settled("startupProbe")
        shutil.copytree(version, models / "googlenet/.copy")
        (models / "googlenet/.copy").rename(models / "googlenet/1")
        after = pod.wait()
        with Client(pod.address) as client:
            client.wait_until_ready(1)
        (models / "googlenet/1").rename(models / "googlenet/.gone")
        taken = pod.wait(ready=False, seconds=60)
        time.sleep(WITHOUT_SECONDS)
        assert not pod.ready
        (models / "googlenet/.gone").rename(models / "googlenet/1")
        back = pod.wait(seconds=60)
    finally:
        over.set()
        watch.join()
    assert not lies
    assert pod.restarts == 0
    assert not pod.settled("livenessProbe", ok=False)
    show(
        f"no model: not ready, no restart; ready {after:.0f} s after a version was published, not "
        f"ready {taken:.0f} s after it was taken away, ready {back:.0f} s after it came back"
    )


def _watch(pod, lies: list[str], over: threading.Event) -> None:
    """Whenever the readiness probe has just succeeded, a version must have been AVAILABLE."""
    while not over.wait(0.2):
        probe = len(pod.settled("readinessProbe"))
        # A client that called before the server was up waits up to 5 s until it connects again, and
        # gRPC has all clients of a process share that.
        with Client(pod.address) as client:
            try:
                states = [found.state for found in client.status(timeout=2)]
            except TFSError as error:
                states = [str(error)]
            if len(pod.settled("readinessProbe")) > probe and "AVAILABLE" not in states:
                lies.append(f"{states}")


def test_a_hung_server_is_restarted(start_pod, engine, show):
    """Liveness fails for its minute, and SIGKILL ends what does not hear SIGTERM."""
    pod = start_pod()
    pod.wait()
    hung = time.monotonic()
    engine("kill", "--signal", "STOP", pod.container)
    pod.wait(ready=False, seconds=60)
    gone = time.monotonic() - hung
    deadline = hung + 400
    while not pod.restarts and time.monotonic() < deadline:
        time.sleep(0.5)
    assert pod.restarts == 1
    pod.wait(seconds=60)
    show(
        f"a server that hangs: not ready after {gone:.0f} s, restarted and ready after "
        f"{time.monotonic() - hung:.0f} s"
    )
