"""What starts and stops the control plane, where none need run."""

import os
import re
import shutil

import pytest

from tests.control_plane import __main__ as command
from tests.control_plane import control_plane, processes, programs


@pytest.fixture
def empty(tmp_path, monkeypatch):
    """A cache without programs, and a machine without Go."""
    monkeypatch.setattr(programs, "CACHE", tmp_path)
    monkeypatch.setattr(control_plane, "FOLDER", tmp_path / "state")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.delenv("GO", raising=False)
    return tmp_path


def test_kubernetes_and_its_parts_are_of_one_version():
    kubernetes = programs.PROGRAMS["kube-apiserver"].version
    parts = re.findall(r"^\s+(\S+) => (\S+) v0\.(\S+)$", programs.go_mod(), re.M)
    assert len(parts) > 25
    assert all(name == by for name, by, _ in parts)
    assert {f"v1.{version}" for _, _, version in parts} == {kubernetes}


def test_every_program_has_a_place_of_its_versions_own():
    paths = {program.path for program in programs.PROGRAMS.values()}
    assert len(paths) == len(programs.PROGRAMS) == 6
    assert all(program.version in str(program.path) for program in programs.PROGRAMS.values())


def test_without_go_it_says_what_to_do(empty, capsys):
    assert command.main(["up"]) == 1
    assert "cluster: error: Go builds the control plane and is not" in capsys.readouterr().err


def test_a_build_that_fails_leaves_no_program(empty, monkeypatch, capfd):
    monkeypatch.setenv("GO", "false")
    assert command.main(["up"]) == 1
    assert "go build of etcd failed with 1, above" in capfd.readouterr().err
    assert not [path for path in empty.rglob("*") if path.is_file()]


def test_down_where_nothing_runs_is_no_error(empty, capsys):
    assert command.main(["down"]) == 0
    assert capsys.readouterr().out == "Nothing was running\n"


@pytest.mark.parametrize("arguments", [[], ["sideways"], ["up", "now"]])
def test_other_words_get_the_usage(arguments, capsys):
    assert command.main(arguments) == 2
    assert "python -m tests.control_plane up | down" in capsys.readouterr().err


def test_a_process_that_has_taken_the_number_is_left_alone(tmp_path):
    """This one, which would not survive it."""
    (tmp_path / "etcd.pid").write_text(str(os.getpid()))
    assert processes.running("etcd", tmp_path) is None
    processes.stop("etcd", tmp_path)
    assert not (tmp_path / "etcd.pid").exists()
