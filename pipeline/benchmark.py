"""Throughput and latency of the published model on the embedded server.

    make benchmark [ADDRESS=host:port]

measures with `tfs bench` on test images, in half a minute. With an address, what serves there is
measured.
"""

from pathlib import Path

from tfs_client.__main__ import main as tfs

from pipeline.errors import PipelineError
from pipeline.local_server import serving


def benchmark(images: Path, repository: Path, address: str | None = None) -> int:
    """Run `tfs bench` against a server started for it, or the one at an address.

    Returns:
        The exit code.

    Raises:
        PipelineError: no sample images, nothing published, or the server does not start.
    """
    files = sorted(str(path) for path in images.glob("*.png"))
    if not files:
        raise PipelineError(f"no images in {images}: run `make data` with the same DATASET")
    if address:
        return tfs(["bench", "--address", address, *files])
    with serving(repository) as client:
        return tfs(["bench", "--address", client.address, *files])
