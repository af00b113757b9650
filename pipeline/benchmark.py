"""Throughput and latency of the published model on the embedded server.

    make benchmark [ADDRESS=host:port] [FLAGS="--scenario all --output report/"]
    make tune [FLAGS="--limit-ms 200 --output serving/config"]

The first measures with `tfs bench` on test images, in a minute; with an address, what serves there.
The second looks for the best settings with `tfs tune`, in a quarter of an hour.
"""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from tfs_client.__main__ import main as tfs
from tfs_client.bench.server_side import PATH as METRICS_PATH
from tfs_client.bench.servers import free_port

from pipeline.config import MODEL_NAME
from pipeline.errors import PipelineError
from pipeline.local_server import serving

MONITORING_CONFIG = Path(__file__).parents[1] / "serving/config/monitoring.config"


def benchmark(
    images: Path, repository: Path, address: str | None = None, flags: Sequence[str] = ()
) -> int:
    """Run `tfs bench` against a server started for it, or the one at an address.

    Args:
        images: folder of those to send.
        repository: holds `googlenet/<version>/`.
        address: host:port; None to start a server.
        flags: further ones of `tfs bench`.

    Returns:
        The exit code.

    Raises:
        PipelineError: no sample images, nothing published, or the server does not start.
    """
    _check(images)
    bench = ["bench", "--images", str(images), *flags]
    if address:
        return tfs([*bench, "--address", address])
    rest = free_port()
    monitoring = f"--monitoring_config_file={MONITORING_CONFIG}"
    metrics = f"http://localhost:{rest}{METRICS_PATH}"
    with serving(repository, f"--rest_api_port={rest}", monitoring) as client:
        return tfs([*bench, "--address", client.address, "--metrics", metrics])


def tune(images: Path, repository: Path, flags: Sequence[str] = ()) -> int:
    """Run `tfs tune` with the embedded server and a published model.

    Args:
        images: folder of those to send.
        repository: holds `googlenet/<version>/`.
        flags: further ones of `tfs tune`.

    Returns:
        The exit code.

    Raises:
        PipelineError: no sample images, or nothing published.
    """
    _check(images)
    if not (repository / MODEL_NAME).is_dir():
        raise PipelineError(f"no model is published in {repository}/: run `make train export`")
    model = (repository / MODEL_NAME).absolute()
    server = [sys.executable, "-m", "serving", "--port={port}", f"--model_base_path={model}"]
    command = f"{shlex.join([*server, f'--model_name={MODEL_NAME}'])} {{flags}}"
    return tfs(["tune", "--images", str(images), "--server", command, *flags])


def _check(images: Path) -> None:
    if not any(images.glob("*.png")):
        raise PipelineError(f"no images in {images}: run `make data` with the same DATASET")
