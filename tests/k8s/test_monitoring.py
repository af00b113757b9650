"""Rules and dashboard: every name is one that a server has, and alerts fire when they should."""

import json
import re
import shutil
import subprocess

import pytest
import yaml

from tests.conftest import ROOT
from tests.k8s.manifests import K8S, read, tool

FOLDER = K8S / "components/monitoring"
RULES = [FOLDER / "prometheus-rule.yaml", K8S / "components/queue-autoscaling/prometheus-rule.yaml"]
# TensorFlow Serving's own, seen on version 2.20: name without histograms' endings -> labels.
BATCHING = ":tensorflow:serving:batching_session:"
SEEN = {
    ":tensorflow:serving:request_count": {"model_name", "status"},
    ":tensorflow:serving:request_latency": {"model_name", "API", "entrypoint"},
    ":tensorflow:serving:runtime_latency": {"model_name", "API", "runtime"},
    ":tensorflow:serving:model_warmup_latency": {"model_path", "status"},
    BATCHING + "queuing_latency": {"thread_pool_name"},
    BATCHING + "wrapped_run_count": set(),
    BATCHING + "padding_size": {"execution_batch_size"},
    BATCHING + "input_batch_size": set(),
    BATCHING + "processed_batch_size": set(),
}
# What Prometheus itself adds: from the ServiceMonitor, and `up`.
TARGET_LABELS = {"namespace", "pod", "track", "job"}
HISTOGRAM = re.compile(r"_(bucket|sum|count)$")
SELECTOR = re.compile(r"([a-zA-Z_:][\w:]*)\{([^}]*)\}|(:tensorflow:[\w:]+)|(\bup\b)")


def rules():
    groups = [group for file in RULES for group in read(file)[0]["spec"]["groups"]]
    return [rule for group in groups for rule in group["rules"]]


def dashboard():
    return json.loads((FOLDER / "dashboard.json").read_text())


def expressions():
    panels = [panel for panel in dashboard()["panels"] if panel["type"] != "row"]
    asked = [target["expr"] for panel in panels for target in panel["targets"]]
    return [rule["expr"] for rule in rules()] + asked


def selectors(expression):
    """The metrics that an expression reads, each with the labels it is selected by."""
    for name, braces, bare, up in SELECTOR.findall(expression):
        yield name or bare or up, set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", braces))


@pytest.fixture
def page(served):
    """Metric -> labels, after a request that was batched and one that failed."""
    status, body = served.get("/v1/models/googlenet:predict", b'{"instances": [1.0, 2.0]}')
    assert status == 200, body
    assert served.get("/v1/models/googlenet:predict", b"{}")[0] == 400
    (monitor,) = read(FOLDER / "service-monitor.yaml")
    status, text = served.get(monitor["spec"]["endpoints"][0]["path"])
    assert status == 200
    found = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            name, _, braces = re.match(r"([\w:]+)(\{(.*)\})? ", line).groups()[:3] or ()
            found.setdefault(name, set()).update(re.findall(r'(\w+)="', braces or ""))
    return found


def test_every_metric_is_one_that_servers_have(page):
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    used = [found for expression in expressions() for found in selectors(expression)]
    assert len({name for name, _ in used}) > 10
    for name, labels in used:
        if name in recorded or name == "up":
            assert labels <= TARGET_LABELS
            continue
        assert name in page, f"the embedded server has no {name}"
        assert labels <= page[name] | TARGET_LABELS, name
        if not name.startswith("embedded_server_"):
            known = name if name in SEEN else HISTOGRAM.sub("", name)
            assert known in SEEN, f"TensorFlow Serving has no {name}"
            own = {"le"} if name.endswith("_bucket") else set()
            assert labels <= SEEN[known] | own | TARGET_LABELS, name


def test_what_is_grouped_by_is_a_label(page):
    known = set.union(*page.values(), TARGET_LABELS)
    for expression in expressions():
        for names in re.findall(r"\b(?:by|on)\s*\(([^)]*)\)", expression):
            assert set(re.split(r",\s*", names)) <= known


def test_the_limit_of_slow_is_a_bucket_of_both_servers(served):
    served.get("/v1/models/googlenet:predict", b'{"instances": [1.0]}')
    _, text = served.get("/monitoring/prometheus/metrics")
    embedded = set(re.findall(r'request_latency_bucket\{.*?le="([^"]+)"', text))
    tensorflow_serving = {f"{float(limit):g}" for limit in embedded}  # absl::StrCat's six digits
    (pattern,) = {m for e in expressions() for m in re.findall(r'le=~"([^"]+)"', e)}
    for limits in (embedded, tensorflow_serving):
        matching = [limit for limit in limits if re.fullmatch(pattern, limit)]
        assert len(matching) == 1
        assert 0.21e6 < float(matching[0]) < 0.22e6


def test_jobs_are_named_as_rules_ask():
    (monitor,) = read(FOLDER / "service-monitor.yaml")
    labels = read(K8S / "base/server/service-rest.yaml")[0]["metadata"]["labels"]
    (job,) = {name for e in expressions() for name in re.findall(r'job="([^"]+)"', e)}
    assert labels[monitor["spec"]["jobLabel"]] == job
    assert set(monitor["spec"]["targetLabels"]) <= set(labels)


def test_the_dashboard_shows_what_operators_ask_for():
    board = dashboard()
    rows = [panel["title"] for panel in board["panels"] if panel["type"] == "row"]
    assert rows == ["Traffic", "Latency", "Batching", "Versions"]
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    variables = {variable["name"] for variable in board["templating"]["list"]}
    text = json.dumps(board)
    assert set(re.findall(r"\$\{?(\w+)", text)) <= variables | {"__rate_interval"}


def test_the_autoscalers_metric_is_recorded():
    (patch,) = read(K8S / "components/queue-autoscaling/horizontal-pod-autoscaler.yaml")
    name = patch[0]["value"]["pods"]["metric"]["name"]
    (rule,) = (rule for rule in rules() if rule.get("record") == name)
    assert "pod" in rule["expr"]
    assert ":" not in name  # the API server's path for it


def test_the_dashboards_expressions_are_promql(tmp_path):
    asked = expressions()[len(rules()) :]
    texts = [
        expression.replace("$__rate_interval", "5m").replace("$namespace", "n")
        for expression in asked
    ]
    recorded = [{"record": f"panel_{i}", "expr": text} for i, text in enumerate(texts)]
    group = {"name": "dashboard", "rules": recorded}
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [group]}))
    promtool(tmp_path, "check", "rules", "rules.yaml")


def test_rules_fire_and_only_when_they_should(tmp_path):
    groups = [group for file in RULES for group in read(file)[0]["spec"]["groups"]]
    rules_file = tmp_path / "rules.yaml"
    rules_file.write_text(yaml.safe_dump({"groups": groups}))
    promtool(tmp_path, "check", "rules", "rules.yaml")
    for group in groups:  # promtool would want every text again, with its numbers
        for rule in group["rules"]:
            rule.pop("annotations", None)
    rules_file.write_text(yaml.safe_dump({"groups": groups}))
    shutil.copy(ROOT / "tests/k8s/rules.test.yaml", tmp_path)
    promtool(tmp_path, "test", "rules", "rules.test.yaml")


def promtool(folder, *arguments):
    done = subprocess.run(
        [tool("promtool"), *arguments],
        cwd=folder, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_is_tested_to_fire_and_not_to():
    (tests,) = read(ROOT / "tests/k8s/rules.test.yaml")
    cases = [case for test in tests["tests"] for case in test.get("alert_rule_test", [])]
    fired = {case["alertname"] for case in cases if case.get("exp_alerts")}
    silent = {case["alertname"] for case in cases if not case.get("exp_alerts")}
    assert fired == silent == {rule["alert"] for rule in rules() if "alert" in rule}


def test_alerts_say_what_to_do():
    for rule in rules():
        if "alert" in rule:
            assert rule["labels"]["severity"] in ("critical", "warning")
            assert set(rule["annotations"]) == {"summary", "description"}
            for target in re.findall(r"`make ([\w-]+)", rule["annotations"]["description"]):
                assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M)
