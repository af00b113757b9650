"""What is tuned of a server, batching and threads, as flags and as files for a number of cores."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tfs_client.bench.batching import Batching

LIMITS = (1, 2, 4, 8)  # cores that settings are written for
REQUEST = 32  # images that every setting takes in one; a version is warmed up with as many
HEAD = "# How concurrent requests are merged; read by TensorFlow Serving and the embedded server.\n"
CONFIG, FLAG_FILE = "batching.config", "flags"
_INTRA_OP = re.compile(r"^--tensorflow_intra_op_parallelism=(\d+)$", re.MULTILINE)


@dataclass(frozen=True)
class Setting:
    """What is tuned.

    Attributes:
        batching: None for a server that does not merge requests.
        intra_op: threads within an operation; 0 for one per core that the server sees.
    """

    batching: Batching | None
    intra_op: int = 0

    def __str__(self) -> str:
        if self.batching is None:
            return "no batching"
        of = self.batching
        return (
            f"batches of {of.largest} within {of.batch_timeout_micros / 1e3:g} ms, "
            f"{of.num_batch_threads or 'default'} × {self.intra_op or 'default'} threads"
        )

    def flags(self, config: Path) -> list[str]:
        """TensorFlow Serving's, with the batching file in its place."""
        found = []
        if self.intra_op:
            found.append(f"--tensorflow_intra_op_parallelism={self.intra_op}")
        if self.batching is not None:
            found += ["--enable_batching", f"--batching_parameters_file={config}"]
            # Twice what all batch threads can hold: requests that wait for a batch hold a thread.
            held = self.batching.largest * max(1, self.batching.num_batch_threads)
            found.append(f"--grpc_max_threads={max(96, 2 * held)}")
        return found


def setting_of(config: Path) -> Setting:
    """A batching file, with the threads of the `flags` beside it.

    Raises:
        TFSError: as `Batching.of_file`.
    """
    batching = Batching.of_file(config)
    beside = config.with_name(FLAG_FILE)
    found = _INTRA_OP.search(beside.read_text()) if beside.exists() else None
    return Setting(batching, int(found[1]) if found else 0)


UNTUNED = {
    "no batching": Setting(None),
    "--enable_batching alone": Setting(Batching()),
}


def sized(largest: int, micros: int, threads: int) -> Batching:
    """Batches of powers of two, which a model can be warmed up with; larger requests are split."""
    sizes = tuple(2**n for n in range(largest.bit_length()))
    if largest >= REQUEST:
        return Batching(largest, micros, 1000, threads, sizes)
    return Batching(REQUEST, micros, 1000, threads, (*sizes, REQUEST), largest)


def scaled(setting: Setting, measured: int, cores: int) -> Setting:
    """The same setting for another number of cores: threads grow with them, batches do not."""
    assert setting.batching
    threads = setting.batching.num_batch_threads
    if setting.intra_op == measured:  # each batch has all cores
        return replace(setting, intra_op=cores)
    threads = max(1, round(threads * cores / measured))
    return replace(setting, batching=replace(setting.batching, num_batch_threads=threads))


def anywhere(setting: Setting, measured: int) -> Setting:
    """The same for any number of cores, where the server's own defaults follow them."""
    assert setting.batching
    if setting.intra_op == measured:
        return replace(setting, intra_op=0)
    if setting.batching.num_batch_threads == measured:
        return replace(setting, batching=replace(setting.batching, num_batch_threads=0))
    return setting


def files(measured: Mapping[int, Setting]) -> dict[str, str]:
    """The best settings by cores -> paths below the folder of configuration files, and their text.

    There is one pair of files for each limit of cores, and one for any number of them. What was
    measured is as measured; other limits are derived from the largest that was.
    """
    most = max(measured)
    found = _pair("", anywhere(measured[most], most), f"measured on {most} cores, for any")
    for cores in sorted({*LIMITS, *measured}):
        origin = cores if cores in measured else most
        setting = scaled(measured[origin], origin, cores)
        how = "measured" if cores in measured else f"derived from {most} cores"
        found |= _pair(f"cpus/{cores}/", setting, f"for a CPU limit of {cores}, {how}")
    return found


def _pair(folder: str, setting: Setting, how: str) -> dict[str, str]:
    assert setting.batching
    flags = [flag for flag in setting.flags(Path(CONFIG)) if "batching" not in flag]
    return {
        f"{folder}{CONFIG}": f"{HEAD}# Written by `tfs tune`, {how}.\n{setting.batching.to_text()}",
        f"{folder}{FLAG_FILE}": "".join(f"{flag}\n" for flag in flags),
    }
