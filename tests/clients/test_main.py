"""The `tfs` command."""

import contextlib
import csv
import io
import json
import os
import pty
import shlex
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import tensorflow as tf
from tfs_client import Client, _images
from tfs_client.__main__ import main
from tfs_client.bench.servers import free_port
from tfs_client.testing import FakeServer

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


def test_a_bad_image_gets_a_line_and_exit_code_1_and_the_others_answers(
    client, image, tmp_path, capsys
):
    junk = tmp_path / "junk.jpg"
    junk.write_bytes(b"junk")
    assert main(["classify", "--address", client.address, str(junk), image]) == 1
    captured = capsys.readouterr()
    assert captured.err == f"tfs: error: {junk}: is not a JPEG, PNG, GIF or BMP image\n"
    assert captured.out.startswith(image)


def test_status_and_metadata(client, capsys):
    assert main(["status", "--address", client.address]) == 0
    assert capsys.readouterr().out == "googlenet version 1: AVAILABLE\n"
    assert main(["metadata", "--address", client.address]) == 0
    assert "  input  images: uint8 [N, N, N, 3]\n" in capsys.readouterr().out


def test_no_server_is_one_line(image, capsys):
    address = f"localhost:{free_port()}"
    assert main(["classify", "--address", address, image]) == 3
    error = capsys.readouterr().err
    assert error.startswith(f"tfs: error: {address}, model googlenet signature serving_default: ")
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["classify"], "required: FILE"),
        (["nope"], "invalid choice: 'nope'"),
        (["status", "--timeout", "0"], "'0' is not a number above 0"),
        (["bench", "--concurrency", "1,x"], "'1,x' is not a list"),
        (["bench", "--steps", "5"], "'5' is not RATE:SECONDS"),
        (["bench", "--senders", "1,2"], "'1,2' is not a whole number"),
    ],
)
def test_usage_errors_are_one_line(arguments, words, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert words in error
    assert len(error.splitlines()) == 1


def test_bench_prints_a_row_for_each_load_and_writes_a_report(server, photos, tmp_path, capsys):
    arguments = ["--images", photos / "b.png", "--seconds", "0.5", "--output", tmp_path / "out"]
    code = run(server, "bench", "--concurrency", "1,4", "--repeats", "2", *arguments)
    title, header, one, four = capsys.readouterr().out.splitlines()
    assert title.startswith(f"googlenet version 2 at {server.address}: encoded payload, windows of")
    assert header.split()[:2] == ["load", "images/s"]
    assert one.split()[:2] == ["1", "caller"]
    assert four.split()[:2] == ["4", "callers"]
    assert code == ("INVALID" in one + four)  # as it may be on a machine that is busy
    assert float(four.split()[2]) > 10
    compared = run(server, "bench", "compare", tmp_path / "out", tmp_path / "out")
    out, error = capsys.readouterr()
    assert (compared, "1.000 (" in out, "is INVALID" in error) == (
        (2, False, True) if code else (0, True, False)
    )


@pytest.mark.parametrize(
    ("load", "rows"),
    [
        (["--rate", "20,40", "--arrivals", "constant"], ["20/s even", "40/s even"]),
        (["--steps", "20:0.5,40:0.5"], ["20:0.5,40:0.5"]),
        (["--burst", "4:0.1"], ["4 each 0.1 s"]),
        (["--replay", "moments.txt"], ["replay of 2"]),
        (["--rate", "20", "--concurrency", "1"], ["1 caller", "20/s"]),
    ],
)
def test_bench_sends_loads_that_do_not_wait(server, photos, monkeypatch, capsys, load, rows):
    monkeypatch.chdir(photos)
    Path("moments.txt").write_text("7\n7.5\n")
    code = run(server, "bench", *load, "--images", "b.png", "--seconds", "0.5")
    shown = capsys.readouterr().out
    assert code == ("INVALID" in shown)
    found = shown.splitlines()[2:]
    assert len(found) == len(rows)
    assert all(line.strip().startswith(row) for line, row in zip(found, rows, strict=True))


def test_bench_names_a_bad_image_and_fails_when_calls_do(image, models, tmp_path, capsys):
    junk = tmp_path / "junk.png"
    junk.write_bytes(b"junk")
    with local_server.serving(models) as client:
        bench = ["bench", "--address", client.address, "--concurrency", "2", "--images"]
        assert main([*bench, image, str(junk)]) == 1
        assert capsys.readouterr().err == f"tfs: error: {junk}: the server could not decode it\n"
        threading.Timer(3, stop_server, [client]).start()
        assert main([*bench, image, "--seconds", "1"]) == 1
    assert "UNAVAILABLE: " in capsys.readouterr().out


def stop_server(client: Client) -> None:
    port = int(client.address.rpartition(":")[2])
    for process in psutil.Process().children():
        with contextlib.suppress(psutil.Error):  # another one that has just ended
            if any(f"--port={port}" in word for word in process.cmdline()):
                process.kill()


def test_ctrl_c_ends_the_bench_without_a_traceback(client, image):
    command = ["bench", "--address", client.address, "--seconds", "20", "--images", image]
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


@pytest.fixture
def server() -> Iterator[FakeServer]:
    def named(image):
        return None if image == b"junk" else [(image.decode(), 0.9), ("other", 0.1)]

    with FakeServer(named, versions=(1, 2), labels={"stable": 1}) as started:
        yield started


@pytest.fixture
def photos(tmp_path) -> Path:
    """A folder with images, in it and below it, and another file."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for name in ("b.png", "a.JPG", "more/c.gif", "notes.txt"):
        (folder / name).write_bytes(name.encode())
    return folder


def run(server: FakeServer, command: str, *arguments: object) -> int:
    return main([command, "--address", server.address, *map(str, arguments)])


def test_folders_and_patterns_are_searched(server, photos, capsys):
    assert run(server, "classify", photos) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [
        str(photos / name) for name in ("a.JPG", "b.png", "more/c.gif")
    ]
    assert run(server, "classify", f"{photos}/**/*.gif", photos / "b.png") == 0
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == [
        "more/c.gif",
        "b.png",
    ]
    for nothing in (f"{photos}/*.bmp", photos.parent / "empty"):
        (photos.parent / "empty").mkdir(exist_ok=True)
        assert run(server, "classify", nothing) == 2
        assert str(nothing) in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"{0}/b.png\n{0}/a.JPG\n", b"\x89PNG..."])
def test_standard_input_is_a_list_of_files_or_an_image(
    server, photos, content, capsys, monkeypatch
):
    server.classify = lambda _: [("x", 1.0)]
    given = content.replace(b"{0}", str(photos).encode())
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given)))
    assert run(server, "classify", "-") == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert names == ([str(photos / "b.png"), str(photos / "a.JPG")] if b"{" in content else ["-"])


def test_answers_as_json_lines_and_csv(server, photos, capsys):
    (photos / "b.png").write_bytes(b"junk")
    (photos / "more" / "c.gif").unlink()
    assert run(server, "classify", "--format", "jsonl", "--version-label", "stable", photos) == 1
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["image"] == str(photos / "a.JPG")
    assert [label["name"] for label in first["labels"]] == ["a.JPG", "other"]
    assert first["labels"][0]["score"] == pytest.approx(0.9)
    assert (first["model"], first["version"]) == ("googlenet", 1)
    assert second == {"image": str(photos / "b.png"), "error": _images.NO_IMAGE}
    assert run(server, "classify", "--format", "csv", "--top", "1", photos) == 1
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(row["rank"], row["label"], row["error"]) for row in rows] == [
        ("1", "a.JPG", ""),
        ("", "", _images.NO_IMAGE),
    ]


def test_predict_takes_json_arrays_and_files(client, image, server, tmp_path, capsys):
    pixels = np.full((1, 20, 20, 3), 200, np.uint8)
    np.save(tmp_path / "pixels.npy", pixels)
    empty = tmp_path / "empty.npy"
    empty.write_bytes(b"")
    address = ["--address", client.address]
    arguments = ["--signature", "predict_images", f"images=@{tmp_path / 'pixels.npy'}"]
    assert main(["predict", *address, *arguments]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["outputs"]["classes"][0][0] == client.classify(pixels[0]).label
    assert main(["predict", *address, f"image_bytes=@{image}"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["outputs"]["classes"][0][0] == client.classify(image).label
    arguments[-1] = f"images={pixels.tolist()}"
    assert main(["predict", *address, *arguments]) == 0
    for bad, words in (
        ("images=[[[[300]]]]", "input images: has values that uint8 cannot hold"),
        ("images=[1.5]", "uint8 cannot hold"),
        ('images=["a"]', "is text where uint8 is asked for"),
        ("images=[", "is not JSON"),
        ("images=@/no/such.npy", "No such file"),
        ("nope=[1]", "no input 'nope': there are images"),
        ("images", "'images' is not NAME=VALUE"),
        (f"images=@{empty}", "input images: "),
        (f"images={'[' * 100_000}", "input images: "),
    ):
        arguments[-1] = bad
        assert main(["predict", *address, *arguments]) == 2
        error = capsys.readouterr().err
        assert words in error
        assert len(error.splitlines()) == 1
    assert main(["predict", *address, "--signature", "nope", "x=1"]) == 2
    assert "no signature 'nope': there are classify, embed" in capsys.readouterr().err


def test_bytes_in_answers_are_as_in_rest(server, capsys):
    server.predict = lambda *_: {"y": np.array([b"text", b"\xff"], object), "z": 1.5}
    assert run(server, "predict", 'image_bytes=[{"b64": "YQ=="}]') == 0
    assert server.requests[-1].message.inputs["image_bytes"].string_val == [b"a"]
    assert json.loads(capsys.readouterr().out) == {
        "outputs": {"y": ["text", {"b64": "/w=="}], "z": 1.5}, "model": "googlenet", "version": 2
    }  # fmt: skip


def test_wait_and_reload(server, tmp_path, capsys):
    assert run(server, "wait") == 0
    assert capsys.readouterr().out == "2\n"
    assert run(server, "wait", "--version", 3, "--timeout", 0.3) == 3
    assert "not available in 0.3 s" in capsys.readouterr().err
    config = tmp_path / "models.config"
    config.write_text('model_config_list { config { name: "m" base_path: "/m" } }')
    assert run(server, "reload", config) == 0
    assert server.requests[-1].method == "HandleReloadConfigRequest"
    config.write_text("nonsense")
    assert run(server, "reload", config) == 2
    assert run(server, "reload", tmp_path / "missing") == 2
    assert "cannot be read" in capsys.readouterr().err
    assert main(["reload", "--address", "one:1,two:2", str(config)]) == 2
    assert "reload is for one server" in capsys.readouterr().err


def test_a_token_comes_from_the_environment_and_not_in_the_clear(server, monkeypatch, capsys):
    monkeypatch.setenv("TFS_TOKEN", "s3cret")
    assert run(server, "status") == 2
    error = capsys.readouterr().err
    assert "in the clear" in error
    assert "s3cret" not in error
    monkeypatch.setenv("TFS_TOKEN", "s3crét")
    assert run(server, "status") == 2
    assert "TFS_TOKEN is not printable ASCII text" in capsys.readouterr().err
    monkeypatch.setenv("TFS_TOKEN", "")
    assert run(server, "status") == 0


def test_mistakes_are_one_line(server, photos, capsys):
    for arguments in (
        ["status", "--version", 10**20],
        ["status", "--key", photos / "b.png"],
        ["predict", "image_bytes=null"],
        ["predict", 'image_bytes=["\\ud800"]'],
        ["bench", "--images", "/nowhere/*"],
    ):
        assert run(server, *arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("tfs: error: ")
        assert len(error.splitlines()) == 1
    assert run(server, "classify", "x" * 5000) == 1
    assert "cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion_knows_the_commands(shell, capsys):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "version-label" in script
    assert "classify" in script
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=script, text=True, check=True, timeout=20)


def test_a_reader_that_has_had_enough_is_no_error(server, photos):
    images = [str(photos / "b.png")] * 3000
    command = [sys.executable, "-m", "tfs_client", "classify", "--address", server.address]
    with subprocess.Popen(
        [*command, *images], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        process.stdout.readline()
        process.stdout.close()
        errors = process.stderr.read()
        assert process.wait(60) == 0
    assert errors == ""


def test_a_slow_run_shows_its_progress_on_a_terminal_and_nowhere_else(server, photos):
    server.fail(None, delay=0.6, times=20)  # four at a time
    images = [str(photos / "b.png")] * 640
    command = [sys.executable, "-m", "tfs_client", "classify", "--address", server.address]
    terminal, end = pty.openpty()
    termios.tcsetwinsize(end, (24, 80))
    shown = b""
    with subprocess.Popen([*command, *images], stdout=subprocess.DEVNULL, stderr=end) as process:
        os.close(end)
        with contextlib.suppress(OSError):  # the end of what is shown
            while more := os.read(terminal, 1 << 16):
                shown += more
        assert process.wait(60) == 0
    os.close(terminal)
    assert b"image/s" in shown
    quiet = subprocess.run(
        [*command, *images], capture_output=True, text=True, timeout=60, check=True
    )
    assert quiet.stderr == ""


@pytest.mark.parametrize("command", ["status", "metadata", "classify"])
def test_output_that_goes_nowhere_is_no_traceback(server, photos, command):
    (photos / b"caf\xe9.png".decode(errors="surrogateescape")).write_bytes(b"x")
    arguments = [command, "--address", server.address]
    if command == "classify":
        arguments += ["--format", "csv", str(photos)]
    words = " ".join(map(shlex.quote, [sys.executable, "-m", "tfs_client", *arguments]))
    for line, code, errors in (
        (f"{words} | true; exit ${{PIPESTATUS[0]}}", 0, ""),
        (f"{words} >/dev/full", 2, "tfs: error: cannot write: No space left on device\n"),
        (f"{words} >&-", 0, ""),
        (f"PYTHONIOENCODING=utf-8:strict {words} >/dev/null", 0, ""),
    ):
        done = subprocess.run(
            ["bash", "-c", line], capture_output=True, text=True, timeout=60, check=False
        )
        assert (done.returncode, done.stderr) == (code, errors), line
