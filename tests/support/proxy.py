"""A TCP proxy in front of a server, to make the server unavailable and available again."""

from __future__ import annotations

import socket
import struct
import threading
import time
from contextlib import suppress

# With it a close sends RST, which looks like a crash of the other side instead of a clean end.
_LINGER_NOT = struct.pack("ii", 1, 0)


class Proxy:
    """Forwards a port of its own to one of this machine.

    Args:
        server_port: of the server.

    Attributes:
        port: where clients connect.
        latency: seconds by which each chunk is late, either way.
        connections: how many were made so far.
    """

    def __init__(self, server_port: int) -> None:
        self.latency = 0.0
        self.connections = 0
        self._server_port = server_port
        self._flowing = threading.Event()
        self._flowing.set()
        self._lock = threading.Lock()
        self._open: dict[socket.socket, threading.Thread] = {}
        # Bound but not listening: it reserves the port while connections are refused.
        self._place = _bound(0)
        self.port: int = self._place.getsockname()[1]
        self._listener: socket.socket | None = None
        self.accept()

    @property
    def accepts(self) -> bool:
        """Whether connections are taken."""
        return self._listener is not None

    def cut(self) -> None:
        """Break all connections, and return when they are broken; new ones are accepted."""
        with self._lock:
            broken, self._open = self._open, {}
        for sock in broken:
            _reset(sock)
        for thread in broken.values():
            thread.join(1)  # a socket that a thread is reading is reset only when that thread has woken up

    def refuse(self) -> None:
        """Break all connections, and refuse new ones, like a port without a server."""
        listener, self._listener = self._listener, None
        if listener is not None:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
            listener.close()
            self._taker.join(5)  # it may be about to add a connection
        self.cut()

    def accept(self) -> None:
        """Accept connections again."""
        if self._listener is None:
            self._listener = _bound(self.port)
            self._listener.listen(128)
            self._taker = threading.Thread(target=self._take, args=(self._listener,), daemon=True)
            self._taker.start()

    def stall(self) -> None:
        """Stop forwarding but keep connections open, like a lost network."""
        self._flowing.clear()

    def flow(self) -> None:
        """Forward the held data, and new data."""
        self._flowing.set()

    def close(self) -> None:
        """Stop the proxy."""
        self.refuse()
        self._flowing.set()
        self._place.close()

    def _take(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self._server_port), timeout=5)
            except OSError:
                _reset(client)
                continue
            server.settimeout(None)
            thread = threading.Thread(target=self._serve, args=(client, server), daemon=True)
            with self._lock:
                self._open |= {client: thread, server: thread}
                self.connections += 1
                thread.start()

    def _serve(self, client: socket.socket, server: socket.socket) -> None:
        back = threading.Thread(target=self._pass_on, args=(server, client), daemon=True)
        back.start()
        self._pass_on(client, server)
        back.join()
        with self._lock:
            self._open.pop(client, None)
            self._open.pop(server, None)
        client.close()
        server.close()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                while not self._flowing.wait(0.05):
                    source.getpeername()  # raises once the connection is cut
                if self.latency:
                    time.sleep(self.latency)
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            _reset(source)
            _reset(target)


def _bound(port: int) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind(("127.0.0.1", port))
    return sock


def _reset(sock: socket.socket) -> None:
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
        sock.shutdown(socket.SHUT_RD)  # wakes the reading thread, which would keep it open
    sock.close()
