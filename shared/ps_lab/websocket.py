"""A WebSocket as the transport of a client: what it carries is the wire protocol of PostgreSQL, in binary frames."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from websockets.frames import CloseCode, Frame, Opcode
from websockets.protocol import State
from websockets.server import ServerProtocol

from ps_lab.client import close

__all__ = ["WebSocket"]

_LONGEST_MESSAGE: Final = 64 << 20
"""Bytes of a frame, or of the fragments of a message: what Neon's proxy takes. Frames are read whole."""
_CLOSE_TIMEOUT: Final = 1.0
"""Seconds that a client has to answer a Close."""


class WebSocket(asyncio.Protocol, asyncio.Transport):
    """Reads and writes frames on a TLS transport, of which it is the protocol, and is itself the transport of `client`.

    The borders of frames mean nothing. A text frame ends it with 1003. Pings are answered here.
    """

    def __init__(self, tls: asyncio.Transport, client: asyncio.Protocol) -> None:
        asyncio.Transport.__init__(self)
        self._tls = tls
        self._client = client
        self._frames = ServerProtocol(max_size=_LONGEST_MESSAGE)

    def open(self, head: bytes, rest: bytes) -> None:
        """Answer the request with this head, which asks for a WebSocket, and go on with what came after it.

        A request that the library refuses is answered with its status, and the connection is closed.
        """
        self._tls.set_protocol(self)
        self._frames.receive_data(head)
        for request in self._frames.events_received():
            self._frames.send_response(self._frames.accept(request))  # type: ignore[arg-type]
        self._flush()
        if self._frames.state is State.OPEN:
            self._client.connection_made(self)
            if rest:
                self.data_received(rest)

    # --- the protocol of the TLS transport ---

    def data_received(self, data: bytes) -> None:
        self._frames.receive_data(data)
        self._flush()
        for frame in self._frames.events_received():
            assert isinstance(frame, Frame)
            if frame.opcode is Opcode.TEXT:
                self._frames.fail(CloseCode.UNSUPPORTED_DATA, "text frames are not supported")
                self._flush()
                break
            if frame.opcode in (Opcode.BINARY, Opcode.CONT) and frame.data:
                self._client.data_received(frame.data)  # type: ignore[arg-type]

    def connection_lost(self, exc: Exception | None) -> None:
        self._client.connection_lost(exc)

    def pause_writing(self) -> None:
        self._client.pause_writing()

    def resume_writing(self) -> None:
        self._client.resume_writing()

    # --- the transport of the client ---

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send a binary frame."""
        self._frames.send_binary(data)
        self._flush()

    def close(self) -> None:
        """Send a Close, and close when it has been answered, or was not in time."""
        if not self.is_closing():
            self._frames.send_close(CloseCode.NORMAL_CLOSURE)
            self._flush()
            self._tls.resume_reading()  # where a server that is gone now had not caught up
            asyncio.get_running_loop().call_later(_CLOSE_TIMEOUT, close, self._tls)

    def abort(self) -> None:
        """Break the connection."""
        self._tls.abort()

    def is_closing(self) -> bool:
        """Return whether nothing more can be written."""
        return self._frames.state is not State.OPEN or self._tls.is_closing()

    def pause_reading(self) -> None:
        """Read no more: pings are not answered, either."""
        self._tls.pause_reading()

    def resume_reading(self) -> None:
        """Read on."""
        self._tls.resume_reading()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return what the TLS transport says."""
        return self._tls.get_extra_info(name, default)

    def _flush(self) -> None:
        for data in self._frames.data_to_send():
            if data:
                self._tls.write(data)
            else:  # the library asks for the end of the stream
                close(self._tls)
