"""A server whose time for an image depends on its batching file; run by test_bench_tune.py."""

import sys
import threading
import time

from tfs_client.bench.batching import Batching
from tfs_client.testing import FakeServer

# One image at a time. Next to these, what the machine does besides is little.
FAST, SLOW, WITHOUT = 0.008, 0.030, 0.050  # seconds


def main() -> None:
    flags = dict(argument.lstrip("-").partition("=")[::2] for argument in sys.argv[1:])
    seconds = WITHOUT
    if "batching_parameters_file" in flags:
        batching = Batching.of_file(flags["batching_parameters_file"])
        seconds = FAST if batching.largest == 16 else SLOW
    turn = threading.Lock()

    def classify(_):
        with turn:
            time.sleep(seconds)
        return [("cat", 1.0)]

    with FakeServer(classify, port=int(flags["port"])):
        threading.Event().wait(120)


if __name__ == "__main__":
    main()
