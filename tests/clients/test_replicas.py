"""Several servers: traffic goes to those that live, and no call fails while one does."""

import contextlib
import ctypes
import socket
import struct
import threading
import time

import pytest
from tfs_client import DeadlineExceededError, UnavailableError
from tfs_client.testing import FakeServer

KILLS = 5
SO_ATTACH_FILTER = 26
AGE = [("grpc.max_connection_age_ms", 2000), ("grpc.max_connection_age_grace_ms", 2000)]


@contextlib.contextmanager
def two_servers():
    with FakeServer() as one, FakeServer() as other:
        yield one, other


def test_addresses_of_a_list_take_turns(connect):
    with two_servers() as servers:
        client = connect([server.address for server in servers])
        for _ in range(10):
            client.classify(b"x")
        assert [len(server.requests) for server in servers] == [5, 5]
        assert client.address == ",".join(server.address for server in servers)


def test_pings_are_safe_while_a_call_is_under_way(connect, server):
    client = connect(server.address, keepalive=10)
    server.fail(None, delay=11.0)  # a server hangs up on whoever pings too often
    assert client.classify(b"x").label == "cat"
    assert client.classify(b"x").label == "cat"
    assert len(server.requests) == 2


def test_a_copy_goes_to_another_server(connect):
    with two_servers() as (slow, fast):
        client = connect([slow.address, fast.address], hedge=0.05)
        slow.fail(None, delay=2.0)
        started = time.monotonic()
        client.classify(b"x")
        assert time.monotonic() - started < 1.0
        assert [len(slow.requests), len(fast.requests)] == [1, 1]


def test_a_copy_goes_to_another_server_whoever_calls_in_between(connect):
    with two_servers() as (slow, fast):
        client = connect([slow.address, fast.address], hedge=0.3)
        rotation = client._rotation  # as if another thread had called
        slow.fail(None, delay=3.0)
        threading.Timer(0.1, rotation.next).start()
        started = time.monotonic()
        client.classify(b"x")
        assert time.monotonic() - started < 2.0


def test_one_that_hangs_is_passed_by_for_a_second(connect):
    with two_servers() as (hanging, well):
        client = connect([hanging.address, well.address], timeout=0.5)
        hanging.fail(None, delay=3.0, times=100)
        failed = 0
        for _ in range(20):
            try:
                client.classify(b"x")
            except DeadlineExceededError:
                failed += 1
        assert 1 <= failed <= 4  # of the ten whose turn it is


@contextlib.contextmanager
def relay(port):
    """A port in front of another, and the connections that came to it."""
    taken = []

    def pump(source, target):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)

    def accept():
        with contextlib.suppress(OSError):
            while True:
                near, far = listening.accept()[0], socket.create_connection(("localhost", port))
                taken.append(near)
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=pump, args=pair, daemon=True).start()

    with socket.create_server(("localhost", 0)) as listening:
        threading.Thread(target=accept, daemon=True).start()
        yield listening.getsockname()[1], taken
        listening.shutdown(socket.SHUT_RDWR)


def vanish(connection):
    """Whatever comes is dropped before TCP sees it, so that nothing is acknowledged."""
    nothing = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))  # BPF: return 0
    program = struct.pack("HL", 1, ctypes.addressof(nothing))
    connection.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_machine_that_vanishes_without_a_word_is_left_within_half_a_minute(connect, server):
    with relay(server.port) as (port, connections):
        client = connect(f"localhost:{port}", timeout=2)
        client.classify(b"x")
        vanish(connections[0])
        began = time.monotonic()
        with pytest.raises(DeadlineExceededError):
            client.classify(b"x")
        while len(connections) == 1:
            with contextlib.suppress(DeadlineExceededError):
                client.classify(b"x")
            assert time.monotonic() - began < 30
        assert client.classify(b"x").label == "cat"


def test_one_that_lives_is_found_among_many_dead(connect, server):
    dead = []
    for _ in range(6):
        with FakeServer() as gone:
            dead.append(gone.address)
    client = connect([*dead, server.address], timeout=10)
    assert client.classify(b"x").label == "cat"


def test_a_dead_server_costs_no_call_and_gets_traffic_when_it_is_back(connect):
    with two_servers() as (one, other):
        client = connect([one.address, other.address])
        client.classify(b"x")
        one.stop()
        for _ in range(50):
            client.classify(b"x")
        one.start()
        deadline, before = time.monotonic() + 20, len(one.requests)
        while len(one.requests) == before:
            assert time.monotonic() < deadline
            client.classify(b"x")
            time.sleep(0.01)


def test_with_all_dead_the_call_fails(connect):
    with two_servers() as servers:
        addresses = [server.address for server in servers]
    with pytest.raises(UnavailableError, match="is the server running"):
        connect(addresses, timeout=5).classify(b"x")


def test_several_connections_to_one_server(connect):
    with FakeServer(host="127.0.0.1") as server:
        for connections in (1, 3):
            server.requests.clear()
            client = connect(server.address, connections=connections)
            for _ in range(6):
                client.classify(b"x")
            assert len({request.peer for request in server.requests}) == connections


@pytest.mark.parametrize("way", ["stop", "drain"])
def test_no_call_of_ten_thousand_fails_while_a_server_is_killed_and_restarted(connect, way):
    calls, seconds = 10_000, 8.0
    with two_servers() as (victim, survivor):
        client = connect([victim.address, survivor.address])
        done = threading.Event()
        kills = 0

        def kill_and_restart():
            nonlocal kills
            while kills < KILLS and not done.wait(seconds / KILLS / 2):
                victim.stop(0.0 if way == "stop" else 1.0)
                done.wait(seconds / KILLS / 2)
                victim.start()
                kills += 1

        thread = threading.Thread(target=kill_and_restart)
        thread.start()
        try:
            images = [b"x"] * 50
            answered = 0
            while answered < calls or kills < KILLS:
                answered += len(client.classify(images, timeout=30))
        finally:
            done.set()
            thread.join(30)
        assert kills == KILLS
        assert len(victim.requests) > 20
        assert len(survivor.requests) > 20


# --- names


@pytest.fixture
def zone():
    """A name server whose one name stands for whatever addresses the test says."""
    dnslib = pytest.importorskip("dnslib")
    served = pytest.importorskip("dnslib.server")
    addresses = []

    class Resolver(served.BaseResolver):
        def resolve(self, request, _):
            reply = request.reply()
            if request.q.qtype == dnslib.QTYPE.A:
                for address in addresses:
                    reply.add_answer(dnslib.RR(request.q.qname, rdata=dnslib.A(address), ttl=0))
            return reply

    server = served.DNSServer(
        Resolver(), address="127.0.0.1", port=0, logger=served.DNSLogger("-request,-reply")
    )
    server.start_thread()
    yield server.server.server_address[1], addresses
    server.stop()
    server.server.server_close()


@pytest.fixture
def replicas():
    """Two servers on one port of two addresses of the loopback interface."""
    with contextlib.ExitStack() as stack:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        yield [
            stack.enter_context(FakeServer(host=host, port=port, options=AGE))
            for host in ("127.0.0.2", "127.0.0.3")
        ]


def test_all_servers_of_a_name_get_traffic_and_new_ones_are_found(connect, zone, replicas):
    name_port, addresses = zone
    one, other = replicas
    addresses.append(one.host)
    client = connect(f"dns://127.0.0.1:{name_port}/replicas.test:{one.port}")
    for _ in range(20):
        client.classify(b"x")
    assert (len(one.requests), len(other.requests)) == (20, 0)
    addresses.append(other.host)
    # What makes a client ask again is that a connection ends, here for the server's connection age.
    deadline = time.monotonic() + 30
    while not other.requests:
        assert time.monotonic() < deadline
        client.classify(b"x", timeout=10)
        time.sleep(0.02)
    one.stop(1.0)
    for _ in range(50):
        client.classify(b"x", timeout=10)
