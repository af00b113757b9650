"""The memory limit holds under load at the server's own pace: SECONDS of it, 600 if not given."""

import math
import re
import threading
import time
from dataclasses import dataclass

from tfs_client import Client
from tfs_client.bench import measure, payloads
from tfs_client.bench.loads import Closed

from tests.containers import pod_spec
from tests.containers.kubelet import Pod

CALLERS = 32  # as many images as the largest batch
WINDOW_SECONDS = 10.0
SAMPLE_SECONDS = 2.0
MOST_GROWTH = 0.10  # from the second fifth of the time, when pools are full, to the last
# By cgroup version: usage, and in which line of which file what the kernel could take back.
FILES = (
    ("/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat", "inactive_file"),
    ("/sys/fs/cgroup/memory/memory.usage_in_bytes", "/sys/fs/cgroup/memory/memory.stat",
     "total_inactive_file"),
)  # fmt: skip


@dataclass
class Working:
    """The container's working set, as a kubelet counts it: what it uses less idle file pages."""

    pod: Pod
    samples: list[int]

    def watch(self, over: threading.Event) -> None:
        while not over.wait(SAMPLE_SECONDS):
            self.samples.append(self._now())

    def _now(self) -> int:
        for usage, statistics, name in FILES:
            done = self.pod.engine.run("exec", self.pod.container, "cat", usage, statistics)
            if done.returncode == 0:
                used = int(done.stdout.split(maxsplit=1)[0])
                return used - int(re.search(rf"^{name} (\d+)$", done.stdout, re.M)[1])
        raise AssertionError("the container does not see its memory cgroup")


def test_the_memory_limit_holds_under_load(start_pod, memory_seconds, show):
    pod = start_pod()
    pod.wait()
    limit = pod_spec.quantity(pod.server["resources"]["limits"]["memory"])
    working, over = Working(pod, []), threading.Event()
    watch = threading.Thread(target=working.watch, args=(over,))
    with Client(pod.address) as client:
        made = payloads.make(client)
        windows = math.ceil(memory_seconds / WINDOW_SECONDS)
        with measure.senders({"address": pod.address}, made) as senders:
            watch.start()
            started = time.monotonic()
            try:
                found = senders.measure(
                    Closed(CALLERS), WINDOW_SECONDS, least=windows, most=windows
                )
            finally:
                over.set()
                watch.join()
        lasted = time.monotonic() - started
    assert found.bad == 0, found.whole.errors
    assert pod.state("OOMKilled") == "false"
    assert pod.restarts == 0
    assert not pod.settled("livenessProbe", ok=False)
    share = len(working.samples) // 5
    warm = working.samples[share : 2 * share]
    last = working.samples[-share:]
    growth = (sum(last) - sum(warm)) / sum(warm)
    peak = max(working.samples)
    show(
        f"memory under {lasted:.0f} s of {CALLERS} callers: {found.whole.sent:,} requests, "
        f"{found.bad} failed or wrong, {found.whole.images_per_second:.0f} images/s; working set "
        f"{peak / 2**20:.0f} MiB at the most of {limit / 2**20:.0f}, {100 * growth:+.1f} % from "
        f"the second fifth of the time to the last"
    )
    assert peak < limit
    assert growth < MOST_GROWTH
