"""The `tfs` command."""

import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest
import tensorflow as tf
from tfs_client import Client
from tfs_client.__main__ import main

from pipeline import local_server
from tests.conftest import colour_image


@pytest.fixture
def image(tmp_path) -> str:
    path = tmp_path / "red.jpg"
    path.write_bytes(tf.io.encode_jpeg(colour_image("red", 300)).numpy())
    return str(path)


def test_classify_prints_a_line_an_image(client, image, capsys):
    assert main(["classify", "--address", client.address, image, image]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(f"{image}  {client.classify(image).label} ")


def test_a_bad_image_gets_a_line_and_exit_code_2_and_the_others_answers(
    client, image, tmp_path, capsys
):
    junk = tmp_path / "junk.jpg"
    junk.write_bytes(b"junk")
    assert main(["classify", "--address", client.address, str(junk), image]) == 2
    captured = capsys.readouterr()
    assert captured.err == f"tfs: error: {junk}: is not a JPEG, PNG, GIF or BMP image\n"
    assert captured.out.startswith(image)


def test_status_and_metadata(client, capsys):
    assert main(["status", "--address", client.address]) == 0
    assert capsys.readouterr().out == "googlenet version 1: AVAILABLE\n"
    assert main(["metadata", "--address", client.address]) == 0
    assert "  input  images: uint8 [N, N, N, 3]\n" in capsys.readouterr().out


def test_no_server_is_one_line(image, capsys):
    address = f"localhost:{local_server.free_port()}"
    assert main(["classify", "--address", address, image]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"tfs: error: {address}, model googlenet: ")
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["classify"], "required: FILE"),
        (["nope"], "invalid choice: 'nope'"),
        (["status", "--timeout", "0"], "'0' is not a number above 0"),
        (["bench", "--concurrency", "1,x", "a.png"], "'1,x' is not a list"),
    ],
)
def test_usage_errors_are_one_line(arguments, words, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert words in error
    assert len(error.splitlines()) == 1


def test_bench_prints_a_row_for_each_number_of_callers(client, image, capsys):
    arguments = ["--concurrency", "1,4", "--seconds", "1", image]
    assert main(["bench", "--address", client.address, *arguments]) == 0
    title, header, one, four = capsys.readouterr().out.splitlines()
    assert title == f"googlenet version 1 at {client.address}: 1 images in turn, 1 s a line"
    assert header.split()[:2] == ["callers", "images/s"]
    assert (one.split()[0], four.split()[0]) == ("1", "4")
    assert float(one.split()[1]) > 1
    assert one.split()[-2:] == ["0", "0"]


def test_bench_names_a_bad_image_and_fails_when_calls_do(image, models, tmp_path, capsys):
    junk = tmp_path / "junk.png"
    junk.write_bytes(b"junk")
    with local_server.serving(models) as client:
        bench = ["bench", "--address", client.address, "--concurrency", "2"]
        assert main([*bench, image, str(junk)]) == 2
        assert (
            capsys.readouterr().err == f"tfs: error: {junk}: is not a JPEG, PNG, GIF or BMP image\n"
        )
        threading.Timer(2, stop_server, [client]).start()
        assert main([*bench, "--seconds", "5", image]) == 2
    assert "is the server running" in capsys.readouterr().out


def stop_server(client: Client) -> None:
    port = int(client.address.rpartition(":")[2])
    for process in psutil.Process().children():
        if any(f"--port={port}" in word for word in process.cmdline()):
            process.kill()


def test_ctrl_c_ends_the_bench_without_a_traceback(client, image):
    command = ["bench", "--address", client.address, "--seconds", "20", "--concurrency", "8", image]
    with subprocess.Popen(
        [sys.executable, "-m", "tfs_client", *command], text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | {"PYTHONUNBUFFERED": "1"},
    ) as process:  # fmt: skip
        for _ in range(2):
            process.stdout.readline()
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert errors == ""
