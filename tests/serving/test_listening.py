"""The server's socket."""

from __future__ import annotations

import socket

from groundup.serving.server import listening
from groundup.serving.service import Service, settings


def test_answers_do_not_wait_for_acknowledgements() -> None:
    """asyncio sets TCP_NODELAY on connections whose socket names its protocol, and on no others."""
    with listening(Service({}, {}, settings({"port": 0}))) as opened:
        assert opened.proto == socket.IPPROTO_TCP
