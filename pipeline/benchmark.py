"""Throughput and latency of the published model on the embedded server.

    make benchmark [ADDRESS=host:port] [FLAGS="--scenario all --output report/"]

measures with `tfs bench` on test images, in a minute. With an address, what serves there is
measured.
"""

from collections.abc import Sequence
from pathlib import Path

from tfs_client.__main__ import main as tfs
from tfs_client.bench.servers import free_port

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
    if not any(images.glob("*.png")):
        raise PipelineError(f"no images in {images}: run `make data` with the same DATASET")
    bench = ["bench", "--images", str(images), *flags]
    if address:
        return tfs([*bench, "--address", address])
    rest = free_port()
    monitoring = f"--monitoring_config_file={MONITORING_CONFIG}"
    metrics = f"http://localhost:{rest}/monitoring/prometheus/metrics"
    with serving(repository, f"--rest_api_port={rest}", monitoring) as client:
        return tfs([*bench, "--address", client.address, "--metrics", metrics])
