import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import grpc
import pytest

from pipeline import local_server
from pipeline.errors import PipelineError
from tests.conftest import ROOT


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def test_nothing_published_is_said(tmp_path):
    with pytest.raises(PipelineError, match=f"no model is published in {tmp_path}/"):
        local_server.serving(tmp_path).__enter__()


def test_a_server_that_ends_at_once_is_not_waited_for(tmp_path):
    (tmp_path / "googlenet" / "1").mkdir(parents=True)
    (tmp_path / "googlenet" / "1" / "saved_model.pb").write_bytes(b"broken")
    started = time.monotonic()
    with pytest.raises(PipelineError, match=r"did not start: .*saved_model\.pb"):
        local_server.serving(tmp_path, "--max_num_load_retries=0").__enter__()
    assert time.monotonic() - started < 30


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_the_server_ends_with_whoever_started_it(models, number):
    script = textwrap.dedent(f"""
        import time
        from pathlib import Path
        from pipeline import local_server
        with local_server.serving(Path({str(models)!r})) as client:
            print(client.address, flush=True)
            time.sleep(60)
    """)
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True,
    ) as process:  # fmt: skip
        address = process.stdout.readline().strip()
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        assert children
        os.kill(process.pid, number)
        assert process.wait(timeout=60) != 0
    assert not any(alive(int(child)) for child in children)
    with grpc.insecure_channel(address) as channel, pytest.raises(grpc.FutureTimeoutError):
        grpc.channel_ready_future(channel).result(timeout=1)
