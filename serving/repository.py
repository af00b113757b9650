"""Version directories -> which versions are loaded, available, ending.

A thread looks at each model's base path every second or so, loads the versions that its policy
wants, and ends the others once their last request is answered. A version that cannot be loaded is
tried again, and never takes the place of one that serves.
"""

import contextlib
import gc
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from serving import models_config
from serving.engine import Servable
from serving.errors import Code, ConfigError, ServingError, invalid_argument, not_found, translate
from serving.models_config import ModelConfig

log = logging.getLogger(__name__)

MAX_VERSION = 2**63 - 1  # an int64 on the wire

Load = Callable[[str, int, Path], Servable]


class State(Enum):
    """A version's state, by TensorFlow Serving's names (get_model_status.proto)."""

    LOADING = "LOADING"
    AVAILABLE = "AVAILABLE"
    UNLOADING = "UNLOADING"
    END = "END"


@dataclass
class Version:
    """What is known of one version."""

    number: int
    state: State = State.LOADING
    error: ServingError | None = None
    servable: Servable | None = None
    requests: int = 0
    failures: int = 0
    next_try: float = 0.0


@dataclass(frozen=True)
class Polling:
    """How the repository is watched.

    Attributes:
        seconds: between two looks; 0 looks once, at the start.
        load_retries: further tries to load a version that failed.
        retry_seconds: between two tries.
    """

    seconds: float = 1.0
    load_retries: int = 5
    retry_seconds: float = 60.0


@dataclass
class _Model:
    config: ModelConfig
    versions: dict[int, Version] = field(default_factory=dict)

    def available(self) -> list[Version]:
        # A copy, as the watching thread may find a version meanwhile.
        return [v for v in list(self.versions.values()) if v.state is State.AVAILABLE]


class Repository:
    """The versions of all models of one server."""

    def __init__(
        self,
        models: list[ModelConfig],
        load: Load,
        polling: Polling,
        stop: threading.Event,
        allow_unavailable: bool = False,
    ) -> None:
        """A repository that has not looked yet.

        Args:
            models: to serve.
            load: (name, version, directory) to a servable that is ready for requests.
            polling: how often to look.
            stop: once set, nothing is waited for or watched any more; what is loaded stays so.
            allow_unavailable: let a label be for a version that is not loaded yet, if it was for no
                other.
        """
        self._models = {model.name: _Model(model) for model in models}
        self._gone: dict[str, _Model] = {}  # what is served no longer still has a status
        self._allow_unavailable = allow_unavailable
        self._load = load
        self._polling = polling
        self._lock = threading.Lock()
        self._polled = threading.Lock()  # one look at a time
        self._stop = stop
        self._garbage = False

    def start(self) -> None:
        """Load what is there and wait until every model serves; then watch for changes.

        A model without versions is waited for, as TensorFlow Serving does.

        Raises:
            ConfigError: a model has versions, and none of them can be loaded; or a label is for a
                version that is not loaded, which at the start none is.
        """
        self._check_first_labels()
        try:
            self._wait_for(list(self._models))
        except ServingError as error:
            raise ConfigError(f"{error}: remove or replace what cannot be loaded") from error
        if self._polling.seconds:
            threading.Thread(target=self._watch, name="repository", daemon=True).start()

    @contextlib.contextmanager
    def servable(
        self, name: str, version: int | None = None, label: str | None = None
    ) -> Iterator[Servable]:
        """A version of a model for the length of a request; it is not unloaded meanwhile.

        Args:
            name: the model's.
            version: its number; None for the highest available.
            label: a version label in place of a number.

        Raises:
            ServingError: NOT_FOUND for the model or version, INVALID_ARGUMENT for the label.
        """
        with self._lock:
            held = self._find(name, version, label)
            held.requests += 1
        try:
            assert held.servable is not None
            yield held.servable
        finally:
            with self._lock:
                held.requests -= 1
                self._end_if_idle(name, held)

    def status(self, name: str, version: int | None = None) -> list[Version]:
        """The versions of a model that were ever looked at, highest first.

        Raises:
            ServingError: NOT_FOUND for the model or version.
        """
        with self._lock:
            model = self._models.get(name) or self._gone.get(name)
            versions = model.versions if model else {}
            found = sorted(versions, reverse=True) if version is None else [version]
            if not found or found[0] not in versions:
                what = "any versions" if version is None else f"version {version}"
                raise not_found(f"Could not find {what} of model {name}")
            return [versions[number] for number in found]

    def reload(self, models: list[ModelConfig], deadline: float | None = None) -> None:
        """Serve other models, versions or labels from now on, and load them; all of it or nothing.

        Args:
            models: to serve.
            deadline: by time.monotonic(), until which to wait for a version that is being loaded,
                and for models that were not served before; None does not wait for these.

        Raises:
            ServingError: FAILED_PRECONDITION, a label is for a version that is not available;
                INVALID_ARGUMENT, a model of another platform; UNKNOWN, a new model cannot be
                loaded; DEADLINE_EXCEEDED, it is not there yet.
        """
        with self._alone(deadline), self._lock:
            served = {name: model.config for name, model in self._models.items()}
            models_config.check_platforms(models, served)
            for config in models:
                self._check_labels(config)
            if models == list(served.values()):
                return
            known = self._gone | self._models
            self._models = {
                config.name: known.pop(config.name, _Model(config)) for config in models
            }
            self._gone = known
            for config in models:
                self._models[config.name].config = config
        log.info("serving %s as newly configured", ", ".join(config.name for config in models))
        for model in self._gone.values():
            self._unload_all_but(model, [])
        new = [config.name for config in models if config.name not in served]
        if deadline is None:
            self.poll()
        else:
            self._wait_for(new, deadline)

    def _wait_for(self, names: list[str], deadline: float | None = None) -> None:
        """Look again and again until every model serves, as TensorFlow Serving does.

        Raises:
            ServingError: UNKNOWN, one cannot be loaded; DEADLINE_EXCEEDED.
        """
        while not self._stop.is_set():
            self.poll(deadline)
            models = [self._models[name] for name in names if name in self._models]
            waiting = [model for model in models if not model.available()]
            hopeless = [version for model in waiting for version in self._hopeless(model)]
            if hopeless:
                kind = "servable" if deadline is None else "model"
                raise ServingError(
                    Code.UNKNOWN,
                    f"{len(hopeless)} {kind}(s) did not become available: "
                    f"{{{', '.join(hopeless)}, }}",
                )
            if not waiting:
                return
            end = math.inf if deadline is None else deadline
            self._stop.wait(min(self._polling.seconds or 1.0, max(0.0, end - time.monotonic())))
            if time.monotonic() >= end:
                missing = ", ".join(model.config.name for model in waiting)
                raise ServingError(Code.DEADLINE_EXCEEDED, f"no version yet of {missing}")

    def poll(self, deadline: float | None = None) -> None:
        """Look at every base path once, and load and unload as the policies say.

        Raises:
            ServingError: DEADLINE_EXCEEDED, somebody else is at it still.
        """
        with self._alone(deadline):
            self._poll()

    @contextlib.contextmanager
    def _alone(self, deadline: float | None = None) -> Iterator[None]:
        """While nobody else looks for versions; who does so may be loading one.

        Raises:
            ServingError: DEADLINE_EXCEEDED, and nothing may be done that the caller has given up.
        """
        left = -1 if deadline is None else max(0.0, deadline - time.monotonic())
        if not self._polled.acquire(timeout=left):
            raise ServingError(Code.DEADLINE_EXCEEDED, "a version is being loaded: ask again later")
        try:
            yield
        finally:
            self._polled.release()

    def _poll(self) -> None:
        for model in self._models.values():
            try:
                found = _versions_in(model.config.base_path)
            except (OSError, ValueError) as error:  # the second for a name that no path can have
                log.warning("cannot read the base path of %s: %s", model.config.name, error)
                continue
            if not found and not model.versions:
                log.warning("no versions of %s in %s", model.config.name, model.config.base_path)
            wanted = model.config.wanted(sorted(found))
            for number in wanted:
                self._load_if_due(model, number, found[number])
            available = [version.number for version in model.available()]
            if available and wanted and not set(wanted) & set(available):
                # The highest old version serves until a new one can
                # (core/availability_preserving_policy.cc).
                wanted = [*wanted, max(available)]
            self._unload_all_but(model, wanted)
        if self._garbage:
            # TensorFlow's functions are in reference cycles, and their weights with them.
            self._garbage = False
            gc.collect()

    def _watch(self) -> None:
        while not self._stop.wait(self._polling.seconds):
            try:
                self.poll()
            except Exception:  # whatever it is, new versions are to be seen still
                log.exception("looking for versions failed")

    def _check_first_labels(self) -> None:
        for model in self._models.values():
            try:
                self._check_labels(model.config, at_start=True)
            except ServingError as error:
                raise ConfigError(
                    f"{error}: give --allow_version_labels_for_unavailable_models"
                ) from error

    def _check_labels(self, config: ModelConfig, at_start: bool = False) -> None:
        """TensorFlow Serving's rule (server_core.cc, UpdateModelVersionLabelMap)."""
        model = self._models.get(config.name)
        available = {version.number for version in model.available()} if model else set()
        current = model.config.labels if model and not at_start else {}
        for label, number in config.labels.items():
            allowed = self._allow_unavailable and current.get(label, number) == number
            if number not in available and not allowed:
                raise ServingError(
                    Code.FAILED_PRECONDITION,
                    f"Request to assign label to version {number} of model {config.name}, which "
                    "is not currently available for inference",
                )

    def _find(self, name: str, version: int | None, label: str | None) -> Version:
        model = self._models.get(name)
        if label is not None:
            if model is None or label not in model.config.labels:
                raise invalid_argument(f"Unrecognized servable version label: {label}")
            version = model.config.labels[label]
        available = {v.number: v for v in model.available()} if model else {}
        number = max(available, default=None) if version is None else version
        if number not in available:
            wanted = f"Latest({name})" if version is None else f"Specific({name}, {version})"
            raise not_found(f"Servable not found for request: {wanted}")
        return available[number]

    def _load_if_due(self, model: _Model, number: int, path: Path) -> None:
        version = model.versions.get(number)
        if version is not None:
            tries_left = version.failures <= self._polling.load_retries
            retry = version.error and tries_left and time.monotonic() >= version.next_try
            if version.state is not State.END or (version.error and not retry):
                return
        else:
            version = Version(number)
            with self._lock:
                model.versions[number] = version
        self._load_version(model.config.name, version, path)

    def _load_version(self, name: str, version: Version, path: Path) -> None:
        with self._lock:
            version.state = State.LOADING
        log.info("loading %s version %d", name, version.number)
        started = time.monotonic()
        try:
            servable = self._load(name, version.number, path)
        except Exception as error:  # a broken model raises whatever its ops do; the server lives on
            known = translate(error)
            with self._lock:
                # Without its traceback, which would keep the weights.
                version.state, version.error = State.END, ServingError(known.code, known.message)
                version.failures += 1
                version.next_try = time.monotonic() + self._polling.retry_seconds
                self._garbage = True
            log.error("cannot load %s version %d: %s", name, version.number, version.error)
            return
        with self._lock:
            version.servable, version.error, version.failures = servable, None, 0
            version.state = State.AVAILABLE
        seconds = time.monotonic() - started
        log.info("available: %s version %d, after %.1f s", name, version.number, seconds)

    def _unload_all_but(self, model: _Model, wanted: list[int]) -> None:
        with self._lock:
            for version in model.versions.values():
                if version.number in wanted:
                    continue
                version.failures, version.next_try = 0, 0.0  # if it comes back, it is another
                if version.state is State.AVAILABLE:
                    version.state = State.UNLOADING
                    self._end_if_idle(model.config.name, version)

    def _end_if_idle(self, name: str, version: Version) -> None:
        if version.state is State.UNLOADING and not version.requests:
            version.servable, version.state = None, State.END
            self._garbage = True
            log.info("unloaded %s version %d", name, version.number)

    def _hopeless(self, model: _Model) -> list[str]:
        """What cannot be loaded of a model all of whose versions failed, and why."""
        failed = [version for version in list(model.versions.values()) if version.failures]
        if any(version.failures <= self._polling.load_retries for version in failed):
            return []
        return [
            f"{{{{name: {model.config.name} version: {version.number}}} due to error: "
            f"{version.error.code.name}: {version.error}}}"
            for version in failed
            if version.error
        ]


def follow(
    repository: Repository,
    file: Path,
    seconds: float,
    stop: threading.Event,
) -> None:
    """Let a repository serve what models.config says, as it changes; a mistake in it is logged.

    The file's word is the last: what a client has configured meanwhile ends at the next look.

    Args:
        repository: to be told.
        file: to look at.
        seconds: between two looks.
        stop: ends it.
    """

    def watch() -> None:
        complaint = ""
        while not stop.wait(seconds):
            try:
                models = models_config.read(file)
                if models is None:
                    raise ConfigError("it says nothing")
                repository.reload(models)
                complaint = ""
            except Exception as error:  # whatever it is, the file may be mended
                if str(error) != complaint:  # said once, not every second
                    log.error("%s is not followed: %s", file, error)
                complaint = str(error)

    threading.Thread(target=watch, name="models-config", daemon=True).start()


def _versions_in(base_path: Path) -> dict[int, Path]:
    """The version directories by number, which may have leading zeros.

    Raises:
        OSError: there is no such base path, or it cannot be read.
    """
    names = {path.name: path for path in sorted(base_path.iterdir()) if path.is_dir()}
    numbers = {int(n): path for n, path in names.items() if n.isascii() and n.isdigit()}
    return {number: path for number, path in numbers.items() if number <= MAX_VERSION}
