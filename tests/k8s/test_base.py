"""The base's probes and flags, against the embedded server itself."""

import shutil
import time

from tests.k8s import manifests

STATUS = "/v1/models/googlenet"


def probe(name):
    container = manifests.server(manifests.raw_base())
    return dict(manifests.probes(container))[name]["path"]


def wait_for(served, path, status):
    deadline = time.monotonic() + 30
    while served.get(path)[0] != status:
        assert time.monotonic() < deadline, f"{path} is not {status}"
        time.sleep(0.2)


def test_probes_follow_the_models_state(served):
    assert probe("startupProbe") == probe("readinessProbe")
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert served.get(probe(name))[0] == 200
    assert '"state": "AVAILABLE"' in served.get(STATUS)[1]

    shutil.move(served.repository / "1", served.repository.parent / "aside")
    wait_for(served, probe("readinessProbe"), 404)
    assert '"state": "END"' in served.get(STATUS)[1]
    assert served.get(probe("livenessProbe"))[0] == 200  # a restart would bring nothing back

    shutil.move(served.repository.parent / "aside", served.repository / "1")
    wait_for(served, probe("readinessProbe"), 200)


def test_liveness_counts_as_no_answer(served):
    """By an OK that stands still an alert knows that no version is there."""
    answered = ':tensorflow:serving:request_count{model_name="googlenet",status="OK"}'

    def count() -> float:
        page = served.get("/monitoring/prometheus/metrics")[1]
        lines = dict(line.rsplit(" ", 1) for line in page.splitlines() if line.startswith(":"))
        return float(lines.get(answered, 0))

    before = count()
    assert served.get(probe("livenessProbe"))[0] == 200
    assert count() == before
    assert served.get(probe("readinessProbe"))[0] == 200
    assert count() == before + 1
