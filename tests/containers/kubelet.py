"""A pod's container on a Docker engine, looked after as a kubelet does.

https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle: the startup probe alone until it
succeeds, then readiness and liveness; ready is what the readiness probe last settled on; a failed
startup or liveness probe ends the container and starts it anew. To end one: it is not ready,
preStop runs, then SIGTERM, and SIGKILL when the grace period, which preStop is part of, is over.
"""

import contextlib
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.containers import pod_spec
from tests.containers.engine import Engine, EngineError
from tests.containers.pod_spec import Place
from tests.k8s.manifests import Document

# PID 1 of a pod whose containers share their processes' namespace.
PAUSE = ("python", "-c", "import signal; signal.pause()")
LEAST_GRACE = 2.0  # that SIGTERM has, however long preStop took
KILLED = 137


@dataclass(frozen=True)
class Seen:
    """What a probe saw.

    Attributes:
        moment: by the monotonic clock.
        probe: startupProbe, readinessProbe or livenessProbe.
        ok: whether it succeeded.
        why: what it was answered.
    """

    moment: float
    probe: str
    ok: bool
    why: str


@dataclass(frozen=True)
class Ended:
    """How a container ended.

    Attributes:
        code: its exit code.
        seconds: from the SIGTERM on.
        killed: whether it outlasted the grace period.
    """

    code: int
    seconds: float
    killed: bool


@dataclass
class Pod:
    """One that runs; see `pod`.

    Attributes:
        engine: what its container runs on.
        spec: rendered.
        ports: of this machine, by name.
        container: its id.
        ready: whether traffic may come.
        seen: what probes saw, in order.
        restarts: of the container.
        started: the moment its container was, by the monotonic clock.
    """

    engine: Engine
    spec: Document
    ports: dict[str, int]
    container: str
    ready: bool = False
    seen: list[Seen] = field(default_factory=list)
    restarts: int = 0
    started: float = field(default_factory=time.monotonic)
    _ending: threading.Event = field(default_factory=threading.Event)
    _failed: threading.Event = field(default_factory=threading.Event)  # liveness
    _threads: list[threading.Thread] = field(default_factory=list)

    @property
    def server(self) -> Document:
        """The container's part of the spec."""
        return self.spec["containers"][0]

    @property
    def address(self) -> str:
        """Of gRPC."""
        return f"127.0.0.1:{self.ports['grpc']}"

    @property
    def url(self) -> str:
        """Of REST."""
        return f"http://127.0.0.1:{self.ports['rest']}"

    def settled(self, probe: str, ok: bool = True) -> list[Seen]:
        """What one probe saw, of those that succeeded or failed."""
        return [seen for seen in list(self.seen) if seen.probe == probe and seen.ok == ok]

    def wait(self, ready: bool = True, seconds: float = 300.0) -> float:
        """Until it is ready, or no longer is; returns how long that took."""
        started = time.monotonic()
        while self.ready != ready:
            if time.monotonic() - started > seconds:
                raise AssertionError(f"still not ready={ready}: {self.seen[-3:]}\n{self.log()}")
            time.sleep(0.05)
        return time.monotonic() - started

    def log(self) -> str:
        """The end of what the server printed."""
        done = self.engine.run("logs", "--tail", "20", self.container)
        return done.stdout + done.stderr

    def inside(self, *words: object) -> str:
        """What a command in the container prints."""
        return self.engine("exec", self.container, *words)

    def state(self, field: str) -> str:
        """A field of the engine's State, such as OOMKilled."""
        return self.engine("inspect", "--format", f"{{{{.State.{field}}}}}", self.container)

    def kill(self) -> None:
        """As when its node dies: at once, and nobody is told."""
        self._stop_probes()
        self.engine("kill", "--signal", "KILL", self.container)
        self.ready = False

    def end(self, pre_stop: bool = True) -> Ended:
        """As `kubectl delete pod` does; without preStop for what a server does by itself."""
        self._stop_probes()
        return self._end(pre_stop)

    def _end(self, pre_stop: bool = True) -> Ended:
        self.ready = False
        grace = float(self.spec["terminationGracePeriodSeconds"])
        sleep = self.server.get("lifecycle", {}).get("preStop", {}).get("sleep", {"seconds": 0})
        if pre_stop:
            time.sleep(sleep["seconds"])
            grace -= sleep["seconds"]
        return self._terminate(max(grace, LEAST_GRACE))

    def _terminate(self, grace: float) -> Ended:
        started = time.monotonic()
        self.engine("kill", "--signal", "TERM", self.container)
        killer = threading.Timer(grace, self._outlasted)
        killer.start()
        try:
            code = int(self.engine("wait", self.container, timeout=grace + 60))
        finally:
            killer.cancel()
        seconds = time.monotonic() - started
        return Ended(code, seconds, killed=code == KILLED and seconds >= grace)

    def _outlasted(self) -> None:
        with contextlib.suppress(EngineError):  # it has just ended
            self.engine("kill", "--signal", "KILL", self.container)

    # --- probes ---

    def start_probes(self) -> None:
        """Look after it until it is ended."""
        watch = threading.Thread(target=self._watch, daemon=True)
        self._threads.append(watch)
        watch.start()

    def _stop_probes(self) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join()

    def _watch(self) -> None:
        while not self._ending.is_set():
            if self._until_failed("startupProbe", until_ok=True):
                self._after_startup()
            if not self._ending.is_set():
                self._end()
                self.restarts += 1
                self.engine("start", self.container)

    def _after_startup(self) -> None:
        """Until liveness fails or all ends."""
        self._failed.clear()
        readiness = threading.Thread(target=self._follow_readiness, daemon=True)
        readiness.start()
        self._until_failed("livenessProbe")
        self._failed.set()
        readiness.join()

    def _follow_readiness(self) -> None:
        probe, failures = self.server["readinessProbe"], 0
        while not self._ending.is_set() and not self._failed.is_set():
            if self._look("readinessProbe", probe):
                failures, self.ready = 0, True
            else:
                failures += 1
                if failures >= probe["failureThreshold"]:
                    self.ready = False
            self._pause(probe["periodSeconds"])

    def _until_failed(self, name: str, until_ok: bool = False) -> bool:
        """Whether a probe succeeded, if that is waited for; it returns when it failed too often."""
        probe, failures = self.server[name], 0
        while not self._ending.is_set() and failures < probe["failureThreshold"]:
            ok = self._look(name, probe)
            failures = 0 if ok else failures + 1
            if ok and until_ok:
                return True
            self._pause(probe["periodSeconds"])
        return False

    def _pause(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and not self._ending.wait(min(left, 0.1)):
            pass

    def _look(self, name: str, probe: Document) -> bool:
        ok, why = look(self, probe)
        self.seen.append(Seen(time.monotonic(), name, ok, why))
        return ok


def look(pod: Pod, probe: Document) -> tuple[bool, str]:
    """Whether a probe succeeds, and what it was answered."""
    timeout = probe.get("timeoutSeconds", 1)
    if "httpGet" in probe:
        url = f"http://127.0.0.1:{_port(pod, probe['httpGet'])}{probe['httpGet'].get('path', '/')}"
        return _http(url, timeout)
    if "exec" in probe:
        done = pod.engine.run("exec", pod.container, *probe["exec"]["command"], timeout=timeout)
        return done.returncode == 0, done.stdout.strip()
    if "grpc" in probe:
        return _grpc(_port(pod, probe["grpc"]), probe["grpc"].get("service", ""), timeout)
    with socket.socket() as connection:
        connection.settimeout(timeout)
        failed = connection.connect_ex(("127.0.0.1", _port(pod, probe["tcpSocket"])))
    return not failed, "open" if not failed else "closed"


def _port(pod: Pod, action: Document) -> int:
    """By name, or by the number that the manifest has."""
    named = {port["containerPort"]: port["name"] for port in pod.server["ports"]}
    return pod.ports[named.get(action["port"], action["port"])]


def _http(url: str, timeout: float) -> tuple[bool, str]:
    try:
        with urllib.request.urlopen(url, timeout=timeout) as answer:
            return 200 <= answer.status < 400, str(answer.status)
    except urllib.error.HTTPError as error:
        return False, str(error.code)
    except OSError as error:
        return False, str(error.__class__.__name__)


def _grpc(port: int, service: str, timeout: float) -> tuple[bool, str]:
    request = health_pb2.HealthCheckRequest(service=service)
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=timeout)
        except grpc.RpcError as error:
            return False, str(error.code())
    serving = health_pb2.HealthCheckResponse.SERVING
    return answer.status == serving, str(answer.status)


@contextlib.contextmanager
def pod(engine: Engine, spec: Document, documents: list[Document], place: Place) -> Iterator[Pod]:
    """Start a pod's container and look after it; it is gone when the block is left."""
    image = spec["containers"][0]["image"]
    started: list[str] = []
    try:
        words = pod_spec.arguments(spec, documents, place)
        if spec.get("shareProcessNamespace"):
            program, *rest = PAUSE
            pause = engine("run", "--detach", "--network=none", "--no-healthcheck",
                           "--entrypoint", program, image, *rest)  # fmt: skip
            started.append(pause)
            words = [f"--pid=container:{pause}", *words]
        started.insert(0, engine("run", "--detach", *words))
        running = Pod(engine, spec, dict(place.ports), started[0])
        running.start_probes()
        yield running
        running._stop_probes()
    finally:
        if started:
            engine.run("rm", "--force", *started)
