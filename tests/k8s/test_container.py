"""Images and the compose file, without an engine: linters, the entry script, what they copy."""

import argparse
import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from serving import batching, flags
from tests.conftest import ROOT
from tests.k8s import manifests
from tests.k8s.manifests import read, tool

FOLDER = ROOT / "serving/container"
DOCKERFILES = sorted(FOLDER.glob("*.Dockerfile"))


def instructions(file):
    """(word, rest) of each instruction, continued lines joined."""
    lines = [line for line in file.read_text().splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [line.split(maxsplit=1) for line in joined.splitlines() if line.strip()]


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.stem)
def test_linters_have_nothing_to_say(file):
    for command in (
        ["hadolint", file],
        ["checkov", "--skip-download", "--quiet", "--compact", "--framework", "dockerfile",
         "--file", file],
    ):  # fmt: skip
        done = subprocess.run(
            [tool(command[0]), *map(str, command[1:])],
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.stem)
def test_images_are_small_non_root_and_of_files_that_are_sent(file):
    found = instructions(file)
    assert [word for word, _ in found].count("FROM") > 1
    assert ["USER", "65532:65532"] in found
    sent = {
        line.removeprefix("!")
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    for word, rest in found:
        if word == "COPY" and "--from=" not in rest:
            *sources, _ = rest.split()
            for source in sources:
                assert list(ROOT.glob(source)), source
                assert source.split("/")[0] in sent, source


def test_images_are_named_as_manifests_name_them():
    docs = manifests.raw_base()
    version = manifests.server(docs)["image"].partition(":")[2]
    (base,) = (rest for word, rest in instructions(FOLDER / "tensorflow-serving.Dockerfile")
               if word == "FROM" and "tensorflow" in rest)  # fmt: skip
    assert base == manifests.server(docs)["image"]
    for file in DOCKERFILES:
        assert f":{version} ." in file.read_text()
    (compose,) = read(FOLDER / "compose.yaml")
    assert compose["services"]["server"]["image"] == f"googlenet-${{SERVER:-embedded}}:{version}"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "200000 100000\n"}, "2"),
        ({"cpu.max": "150000 100000\n"}, "2"),
        ({"cpu.max": "50000 100000\n"}, "1"),
        ({"cpu.max": "max 100000\n"}, str(len(os.sched_getaffinity(0)))),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, "4"),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
    ],
)
def test_the_entry_takes_its_threads_from_the_cpu_limit(tmp_path, files, expected):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    parsed = started_by_the_entry(tmp_path, ROOT / "serving/config")
    cpus = int(expected or len(os.sched_getaffinity(0)))
    assert parsed.tensorflow_intra_op_parallelism == 1
    assert batching.read(parsed.batching_parameters_file).threads == cpus
    assert parsed.tensorflow_inter_op_parallelism == cpus
    assert parsed.model_config_file_poll_wait_seconds == 5


@pytest.mark.parametrize(
    ("text", "threads"),
    [
        ("max_batch_size { value: 8 } num_batch_threads { value: 3 }\n", 3),
        ("# num_batch_threads follows the limit\nmax_batch_size { value: 8 }\n", 77),
    ],
)
def test_the_entry_leaves_threads_that_a_batching_file_has(tmp_path, text, threads):
    (tmp_path / "cpu.max").write_text("7700000 100000\n")
    config = tmp_path / "config"
    config.mkdir()
    (config / "batching.config").write_text(text)
    parsed = started_by_the_entry(tmp_path, config)
    assert batching.read(parsed.batching_parameters_file).threads == threads


def started_by_the_entry(folder: Path, config: Path) -> argparse.Namespace:
    """The flags of the server that it starts, where a folder is the container's cgroup."""
    server = folder / "tensorflow_model_server"
    server.write_text('#!/bin/sh\necho "$$"\nprintf "%s\\n" "$@"\n')
    server.chmod(0o755)
    environment = {"PATH": f"{folder}:{os.environ['PATH']}", "CGROUP": str(folder)}
    environment |= {"CONFIG": str(config), "TMPDIR": str(folder)}
    with subprocess.Popen(
        [FOLDER / "serve", "--model_config_file_poll_wait_seconds=5"],
        env=environment, stdout=subprocess.PIPE, text=True,
    ) as started:  # fmt: skip
        pid, *arguments = started.communicate(timeout=20)[0].splitlines()
    assert started.returncode == 0
    assert int(pid) == started.pid  # exec: signals reach the server
    return flags.parse(arguments)


def test_the_entrys_flags_are_the_deployments():
    """But for those that only one of them has a reason for."""
    script = set(re.findall(r"--\w+=\S+", (FOLDER / "serve").read_text().replace('"', "")))
    given = {
        argument.replace("/etc/googlenet/batching-$(CPU_LIMIT).config", "$batching")
        .replace("$(CPU_LIMIT)", "$cpus")
        .replace("/etc/googlenet", "$config")
        for argument in manifests.server(manifests.raw_base())["args"]
    }
    assert given - script == {"--file_system_poll_wait_seconds=10"}
    assert script <= given


def test_the_embedded_image_has_what_serving_imports():
    """By the modules that the packages of embedded.txt bring; and nothing else."""
    provided = {
        "cheroot": "cheroot", "grpc": "grpcio", "grpc_health": "grpcio-health-checking",
        "numpy": "numpy", "prometheus_client": "prometheus-client", "google": "protobuf",
        "tensorflow": "tensorflow", "tensorflow_serving": "tensorflow-serving-api",
        "werkzeug": "werkzeug",
    }  # fmt: skip
    imported = set()
    for file in (ROOT / "serving").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                imported |= {name.name.split(".")[0] for name in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.split(".")[0])
    foreign = imported - set(sys.stdlib_module_names) - {"serving"}
    lines = (FOLDER / "embedded.txt").read_text().splitlines()
    listed = {line for line in lines if not line.startswith("#")}
    assert {provided[name] for name in foreign} == listed


def test_the_embedded_images_command_is_one_that_the_server_takes(capsys):
    words = dict(instructions(FOLDER / "embedded.Dockerfile"))
    assert json.loads(words["ENTRYPOINT"]) == ["python", "-m", "serving"]
    flags.parse(json.loads(words["CMD"]))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", ["tensorflow-serving", "embedded"])
def test_health_checks_follow_the_model(served, name):
    words = dict(instructions(FOLDER / f"{name}.Dockerfile"))
    check = json.loads(words["HEALTHCHECK"].partition(" CMD ")[2])
    port = served.address.rpartition(":")[2]
    command = [sys.executable if check[0] == "python" else check[0]]
    command += [word.replace("8501", port) for word in check[1:]]
    run = [*command[:1], *command[1:]]
    assert subprocess.run(run, timeout=20, check=False, capture_output=True).returncode == 0
    missing = [word.replace("models/googlenet", "models/other") for word in run]
    assert subprocess.run(missing, timeout=20, check=False, capture_output=True).returncode != 0


def test_composes_prometheus_has_the_clusters_rules_and_labels():
    (rule,) = read(manifests.K8S / "components/monitoring/prometheus-rule.yaml")
    (rules,) = read(FOLDER / "prometheus/rules.yaml")
    assert rules == rule["spec"], "run `make rules`"
    config = yaml.safe_load((FOLDER / "prometheus/prometheus.yml").read_text())
    (scrape,) = config["scrape_configs"]
    (targets,) = scrape["static_configs"]
    assert {"namespace", "track", "pod"} == set(targets["labels"])
    (monitor,) = read(manifests.K8S / "components/monitoring/service-monitor.yaml")
    assert scrape["metrics_path"] == monitor["spec"]["endpoints"][0]["path"]


def test_composes_prometheus_can_start():
    done = subprocess.run(
        [tool("promtool"), "check", "config", FOLDER / "prometheus/prometheus.yml"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_composes_files_are_there():
    (compose,) = read(FOLDER / "compose.yaml")
    for service in compose["services"].values():
        for volume in service["volumes"]:
            source, _, mode = volume.split(":")
            assert mode == "ro"
            assert (FOLDER / source).exists() or source == "../../models"
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
