import gzip
import http.server
import struct
import threading
from pathlib import Path

import numpy as np
import pytest

from pipeline import dataset, mirror
from pipeline.errors import PipelineError

PACKAGE = mirror.DEBIAN_PACKAGES["fashion_mnist"]
CLOSED = "http://127.0.0.1:9/"  # the discard port: nothing answers there


def write_idx(folder: Path, images: dict[str, int]) -> None:
    """Files in the format of Fashion-MNIST's with as many made images as it has."""
    folder.mkdir(parents=True, exist_ok=True)
    for prefix, count in images.items():
        pixels = np.zeros((count, 28, 28), np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        pixels[:, 0, 0] = labels
        header = struct.pack(">IIII", 2051, count, 28, 28)
        for name, content in (
            ("images-idx3", header + pixels.tobytes()),
            ("labels-idx1", struct.pack(">II", 2049, count) + labels.tobytes()),
        ):
            with gzip.open(folder / f"{prefix}-{name}-ubyte.gz", "wb", compresslevel=1) as file:
                file.write(content)


def test_tfds_own_builder_reads_a_named_mirror(tmp_path):
    write_idx(tmp_path / "mirror", {"train": 60_000, "t10k": 10_000})
    data = dataset.load("fashion_mnist", tmp_path / "data", (tmp_path / "mirror").as_uri())
    assert (data.train.size, data.test.size) == (60_000, 10_000)
    assert data.class_names[9] == "Ankle boot"
    for image, label in data.test.images().take(20).as_numpy_iterator():
        assert image.shape == (28, 28, 1)
        assert image[0, 0, 0] == label


def test_an_upstream_that_answers_is_used(tmp_path):
    (tmp_path / PACKAGE.probe).write_bytes(b"")

    class Files(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(tmp_path))

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Files) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        upstream = f"http://127.0.0.1:{server.server_port}/"
        assert mirror.find("fashion_mnist", upstream, tmp_path) == upstream
        server.shutdown()


def test_other_data_sets_keep_their_address(tmp_path):
    assert mirror.find("kmnist", CLOSED, tmp_path) == CLOSED


def test_an_unpacked_package_is_found(tmp_path):
    if (Path("/") / PACKAGE.folder / PACKAGE.probe).exists():
        pytest.skip("the package is installed on this machine, and found first")
    folder = tmp_path / PACKAGE.name / PACKAGE.folder
    folder.mkdir(parents=True)
    (folder / PACKAGE.probe).write_bytes(b"")
    assert mirror.find("fashion_mnist", CLOSED, tmp_path) == folder.as_uri() + "/"


def test_without_upstream_or_package_the_way_out_is_told(tmp_path, monkeypatch):
    unknown = mirror.DebianPackage("no-such-package-anywhere", "usr/share/none", "probe")
    monkeypatch.setitem(mirror.DEBIAN_PACKAGES, "fashion_mnist", unknown)
    monkeypatch.setenv("PATH", str(tmp_path))  # no apt-get
    with pytest.raises(PipelineError, match=r"no-such-package-anywhere .*--mirror"):
        mirror.find("fashion_mnist", CLOSED, tmp_path)
