"""What the manifest promises of the container holds inside it."""

import re

from tests.containers import pod_spec
from tests.containers.engine import EngineError

CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def test_the_container_is_as_the_manifest_says(start_pod, show):
    pod = start_pod()
    pod.wait()
    status = dict(re.findall(r"^(\w+):\t(.*)$", pod.inside("cat", "/proc/self/status"), re.M))
    security = pod.spec["securityContext"]
    assert status["Uid"].split() == [str(security["runAsUser"])] * 4
    assert status["Gid"].split() == [str(security["runAsGroup"])] * 4
    assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"  # by a filter
    for place in ("/", "/app", "/models", "/etc/googlenet", "/opt/venv"):
        assert not _may_write(pod, place), place
    assert _may_write(pod, "/tmp")
    limits = pod.server["resources"]["limits"]
    memory = pod.inside("sh", "-c", f"cat {' '.join(CGROUP_LIMITS)} 2>/dev/null || true")
    assert memory == str(int(pod_spec.quantity(limits["memory"])))
    assert pod.inside("printenv", "CPU_LIMIT") == limits["cpu"]
    show(
        f"the rendered container ran as {security['runAsUser']}, root read-only, no capabilities, "
        f"seccomp, limits {limits['cpu']} CPUs and {limits['memory']}: ready after "
        f"{pod.settled('readinessProbe')[0].moment - pod.started:.1f} s"
    )


def _may_write(pod, folder: str) -> bool:
    try:
        pod.inside("touch", f"{folder}/probe")
    except EngineError:
        return False
    return True
