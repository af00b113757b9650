"""Processes that end with a block, and the ports that they are given."""

import signal
import subprocess
import sys
import time

import psutil
from tfs_client.bench import servers

TIMEOUT = 30


def python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, timeout=TIMEOUT, check=False)


def test_a_signal_that_comes_while_a_process_is_started_ends_it_too():
    done = python("""
import os, signal, subprocess, sys
from tfs_client.bench import servers

class Popen(subprocess.Popen):
    def __init__(self, *given, **settings):
        super().__init__(*given, **settings)
        print(self.pid, flush=True)
        os.kill(os.getpid(), signal.SIGTERM)

subprocess.Popen = Popen
signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
with servers.session(["sleep", "60"]):
    print("the block was begun")
""")
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert not psutil.pid_exists(int(done.stdout))


def test_what_a_process_started_ends_with_the_block():
    with (
        servers.session(
            ["sh", "-c", "sleep 60 & echo $!; wait"], stdout=subprocess.PIPE, text=True
        ) as process,
        process.stdout as said,
    ):
        child = psutil.Process(int(said.readline()))
    assert process.returncode == -signal.SIGTERM
    until = time.monotonic() + TIMEOUT
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_port_is_nobody_elses_while_its_process_lives():
    take = (
        "import sys; from tfs_client.bench import servers; print(servers._take(int(sys.argv[1])))"
    )
    port = servers.free_port()
    assert python(take, port).stdout == "False\n"
    assert python(take, port + 1).stdout == "True\n"
