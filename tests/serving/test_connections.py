"""Connections that only hold a place, tried over real sockets against the server that runs in production."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groundup.serving import keys
from groundup.serving.connections import ConnectionSettings, uvicorn_options
from groundup.serving.security import Guards, SecuritySettings

uvicorn = pytest.importorskip("uvicorn", reason="the server: pip install 'groundup[serve]'")
QUICK = ConnectionSettings(head_time=0.3, stall_time=0.5, idle=5, per_address=4, max_head=8192)
BIG = 64 << 20


async def answer(scope: Any, receive: Any, send: Any) -> None:
    """Says yes, or for `/big` more than any buffer holds."""
    if scope["type"] == "lifespan":
        return
    await receive()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    if scope["path"] == "/big":
        for _ in range(BIG >> 20):
            await send({"type": "http.response.body", "body": b"x" * (1 << 20), "more_body": True})
    await asyncio.sleep(0.6 if scope["path"] == "/slow" else 0)
    await send({"type": "http.response.body", "body": b"yes"})


@contextmanager
def serving(limits: ConnectionSettings = QUICK, *, guarded: bool = True, app: Any = answer) -> Iterator[Any]:
    """A server in a thread; gives it, with the address in `.place`."""
    options = uvicorn_options(limits) if guarded else {"http": "h11"}
    config = uvicorn.Config(app, log_level="critical", lifespan="off", **options)
    server = uvicorn.Server(config)
    listener = socket.create_server(("127.0.0.1", 0))
    server.place = listener.getsockname()
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    end = time.monotonic() + 10
    while not server.started and time.monotonic() < end:
        time.sleep(0.01)
    try:
        yield server
    finally:
        server.should_exit = server.force_exit = True
        thread.join(10)


def is_closed_within(connection: socket.socket, seconds: float) -> bool:
    """Whether the other side ends the connection by itself."""
    connection.settimeout(seconds)
    try:
        return connection.recv(1) == b""
    except TimeoutError:
        return False
    except ConnectionError:
        return True


@pytest.mark.parametrize("guarded", [True, False])
@pytest.mark.parametrize("start", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nhost: a\r\nx-a:"])
def test_a_head_that_never_ends_is_cut_off(start: bytes, guarded: bool) -> None:
    with serving(guarded=guarded) as server, socket.create_connection(server.place) as connection:
        connection.sendall(start)
        assert is_closed_within(connection, 1.5) is guarded


def test_a_head_that_trickles_is_cut_off_all_the_same() -> None:
    with serving() as server, socket.create_connection(server.place) as connection:
        begun = time.monotonic()
        try:
            for letter in b"GET / HTTP/1.1\r\nhost: aaaaaaaaaaaaaaaaaaaaaaaaaaaaa":
                connection.sendall(bytes([letter]))
                time.sleep(0.05)
        except ConnectionError:
            pass
        assert is_closed_within(connection, 1)
        assert time.monotonic() - begun < 2


def test_a_slow_answer_is_not_cut_off_and_a_second_request_is_timed_anew() -> None:
    with serving() as server, socket.create_connection(server.place) as connection:
        connection.settimeout(5)
        for _ in range(2):
            connection.sendall(b"GET /slow HTTP/1.1\r\nhost: a\r\n\r\n")
            text = b""
            while b"yes" not in text:
                text += connection.recv(4096)
            assert text.startswith(b"HTTP/1.1 200")
            connection.settimeout(0.2)
            with pytest.raises(TimeoutError):
                connection.recv(7)  # the end of the chunked answer, then silence
                connection.recv(7)
            connection.settimeout(5)
        connection.sendall(b"GET / HT")
        assert is_closed_within(connection, 1.5)


@pytest.mark.parametrize("guarded", [True, False])
def test_a_client_that_does_not_read_is_cut_off(guarded: bool) -> None:
    with serving(guarded=guarded) as server, socket.create_connection(server.place) as connection:
        connection.sendall(b"GET /big HTTP/1.1\r\nhost: a\r\n\r\n")
        time.sleep(1.5)
        assert (len(server.server_state.connections) == 0) is guarded


def test_one_address_holds_so_many_connections_and_no_more() -> None:
    with serving(QUICK.model_copy(update={"head_time": 30.0})) as server:
        held = [socket.create_connection(server.place) for _ in range(6)]
        try:
            time.sleep(0.1)
            assert sum(is_closed_within(connection, 0.05) for connection in held) == 2
        finally:
            for connection in held:
                connection.close()
        time.sleep(0.2)
        with socket.create_connection(server.place) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
            connection.settimeout(5)
            assert connection.recv(4096).startswith(b"HTTP/1.1 200"), "places are free again"


def test_a_head_without_end_takes_no_memory() -> None:
    with serving() as server, socket.create_connection(server.place) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\n")
        try:
            for _ in range(100):
                connection.sendall(b"x-a: " + b"a" * 1000 + b"\r\n")
        except ConnectionError:
            return
        connection.settimeout(1)
        with suppress(ConnectionError):
            assert connection.recv(20).startswith(b"HTTP/1.1 4")


def test_a_websocket_is_no_slow_head_and_holds_no_place_of_a_connection() -> None:
    why = "uvicorn speaks websockets with it: pip install websockets"
    connect = pytest.importorskip("websockets.sync.client", reason=why).connect

    async def echo(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": message["text"]})

    with serving(app=echo) as server:
        url = "ws://{}:{}/s".format(*server.place)
        for _ in range(QUICK.per_address + 1):
            with connect(url) as one:
                one.send("first")
                assert one.recv(timeout=5) == "first"
        with connect(url) as one:
            time.sleep(2 * QUICK.head_time)
            one.send("late")
            assert one.recv(timeout=5) == "late"


def test_a_body_without_end_is_not_taken_from_strangers() -> None:
    keys.create(Path("keys.json"), "a")
    guards = Guards(SecuritySettings(), keys=Path("keys.json"))
    with serving(app=guards.protect(answer)) as server, socket.create_connection(server.place) as connection:
        connection.sendall(b"POST /v1/x HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n")
        connection.settimeout(5)
        reply, sent = b"", 0
        with suppress(ConnectionError):
            while sent < BIG:
                connection.sendall(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
                sent += 0x10000
        with suppress(ConnectionError):
            reply = connection.recv(4096)
        assert sent < BIG, "the connection was closed"
        assert reply == b"" or reply.startswith(b"HTTP/1.1 401")


PIECES = [
    *(b"GET / HTTP/1.1\r\n", b"POST /session HTTP/1.1\r\n", b"GET http://evil/ HTTP/1.1\r\n", b"GET * HTTP/1.0\r\n"),
    *(b"host: localhost\r\n", b"content-length: 5\r\n", b"content-length: 99\r\n", b"transfer-encoding: chunked\r\n"),
    *(b"cookie: a\xff\r\n", b"upgrade: websocket\r\nconnection: upgrade\r\n", b" folded\r\n", b"\r\n", b"\x00"),
    *(b"5\r\nhello\r\n", b"0\r\n\r\n"),
]


@settings(max_examples=60)
@given(st.binary(max_size=200) | st.lists(st.sampled_from(PIECES), max_size=8).map(b"".join))
def test_whatever_bytes_come_the_server_goes_on(open_server: Any, sent: bytes) -> None:
    with socket.create_connection(open_server.place) as connection, suppress(ConnectionError):
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        connection.settimeout(5)
        reply = b""
        while piece := connection.recv(4096):
            reply += piece
        assert b"HTTP/1.1 5" not in reply, reply
    with socket.create_connection(open_server.place) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        connection.settimeout(5)
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")


@pytest.fixture(scope="module")
def open_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A guarded server for all examples."""
    file = tmp_path_factory.mktemp("keys") / "keys.json"
    keys.create(file, "a")
    with serving(QUICK, app=Guards(SecuritySettings(), keys=file).protect(answer)) as server:
        yield server
