"""The connections to servers and bouncers that `POST /sql` runs its statements on."""

from __future__ import annotations

import asyncio
import select
from collections import defaultdict
from contextlib import suppress
from pathlib import Path as File
from typing import TYPE_CHECKING, Any, Final

import psycopg
from psycopg.pq import ConnStatus, ExecStatus, TransactionStatus
from psycopg.pq import version as libpq_version

from ps_lab import sql_over_http
from ps_lab.sql_over_http import Problem

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine

    from psycopg.pq.abc import PGresult

    from ps_lab.routes import Path, Route
    from ps_lab.sql_over_http import Batch, Limits, Login, Modes, Query

__all__ = ["Backends"]

_MOST_IDLE: Final = 20
"""Backends of one login and route that are kept: Neon's proxy."""
_LONGEST_IDLE: Final = 300.0
"""Seconds that one is kept: Neon's proxy."""
_CANCEL_TIMEOUT: Final = 0.1
"""Seconds that a statement has to end when it is cancelled: Neon's proxy."""
_ROWS: Final = {ExecStatus.TUPLES_OK, ExecStatus.SINGLE_TUPLE, ExecStatus.TUPLES_CHUNK}
_COPIES: Final = {ExecStatus.COPY_IN, ExecStatus.COPY_OUT, ExecStatus.COPY_BOTH}


class Backend:
    """A connection."""

    def __init__(self, conn: psycopg.AsyncConnection[Any]) -> None:
        self.conn = conn
        self.pgconn = conn.pgconn
        self._loop = asyncio.get_running_loop()

    @classmethod
    async def connect(cls, route: Route, login: Login) -> Backend:
        """Connect.

        Raises:
            Problem: that is refused.
        """
        socket = File(route.socket)
        try:
            conn = await psycopg.AsyncConnection.connect(
                host=str(socket.parent),
                port=socket.suffix[1:],
                user=route.user,
                password=login.password,
                dbname=login.database,
                application_name=login.application_name,
                options=login.options,
                client_encoding="UTF8",
                autocommit=True,
            )
        except psycopg.OperationalError as exc:
            raise Problem.of_connecting(exc) from exc
        return cls(conn)

    @property
    def usable(self) -> bool:
        """Whether it is outside of a transaction, and the server has not said anything since, as when it ends."""
        if self.pgconn.status != ConnStatus.OK or self.pgconn.transaction_status != TransactionStatus.IDLE:
            return False
        return not select.select([self.pgconn.socket], [], [], 0)[0]

    def close(self) -> None:
        """Close it."""
        self.pgconn.finish()

    async def cancel(self) -> None:
        """Cancel what runs, wait for a moment, and close."""
        with suppress(psycopg.Error, TimeoutError):
            await self.conn.cancel_safe(timeout=1)
            async with asyncio.timeout(_CANCEL_TIMEOUT):
                async for _ in self._results():
                    pass
        self.close()

    async def execute(self, query: Query) -> AsyncIterator[PGresult]:
        """Run a statement, and yield its rows in results of some, and a last one; or the error."""
        if any(b"\0" in text for text in (query.text, *query.params) if text is not None):  # libpq would end there
            known = {"code": "22021", "severity": "ERROR"}
            raise Problem(400, 'invalid byte sequence for encoding "UTF8": 0x00', known=known)
        self.pgconn.send_query_params(query.text, query.params)
        if libpq_version() >= 170000:
            self.pgconn.set_chunked_rows_mode(100)
        else:
            self.pgconn.set_single_row_mode()
        async for result in self._results():
            yield result

    async def command(self, text: bytes) -> None:
        """Run a statement of the proxy's own.

        Raises:
            Problem: it fails.
        """
        self.pgconn.send_query(text)
        async for result in self._results():
            if result.status == ExecStatus.FATAL_ERROR:
                raise Problem.of_result(result)

    async def _results(self) -> AsyncIterator[PGresult]:
        while self.pgconn.flush():
            if await self._ready(write=True):
                self._read()
        while True:
            while self.pgconn.is_busy() and self.pgconn.status == ConnStatus.OK:
                await self._ready()
                self._read()
            result = self.pgconn.get_result()
            if result is None:
                return
            yield result

    def _read(self) -> None:
        with suppress(psycopg.OperationalError):  # the connection is lost: what the server said before is still to be got
            self.pgconn.consume_input()

    async def _ready(self, *, write: bool = False) -> bool:
        """Wait until something can be read, or written, and return whether it can be read."""
        descriptor, ready = self.pgconn.socket, asyncio.Event()
        self._loop.add_reader(descriptor, ready.set)
        if write:
            self._loop.add_writer(descriptor, ready.set)
        try:
            await ready.wait()
        finally:
            self._loop.remove_reader(descriptor)
            self._loop.remove_writer(descriptor)
        return bool(select.select([descriptor], [], [], 0)[0])


class Backends:
    """Runs requests, on connections that it keeps: by user, password, database, parameters and route."""

    def __init__(self) -> None:
        self._idle: defaultdict[tuple[Route, Login], list[Backend]] = defaultdict(list)
        self._tasks: set[asyncio.Task[None]] = set()

    def drop(self, path: Path | None = None) -> None:
        """Close what is idle, on a path or everywhere."""
        for (route, _), idle in self._idle.items():
            if path in (None, route.path):
                while idle:
                    idle.pop().close()

    async def run(self, route: Route, login: Login, batch: Batch, modes: Modes, limits: Limits) -> str:
        """Run a request, and return the JSON of its answer.

        Where this is cancelled, the statement is.

        Raises:
            Problem: what to answer instead.
        """
        backend: Backend | None = None
        answer = _Answer(modes, limits.response_bytes)
        try:
            async with asyncio.timeout(limits.seconds):
                backend = await self._take(route, login)
                content = await (self._alone if batch.alone else self._together)(backend, batch, answer)
        except TimeoutError:
            if backend is None:
                raise Problem(408, "connecting to the database timed out", msg=True) from None
            await backend.cancel()
            raise (answer.too_large or Problem(500, "Query cancelled, connection was terminated")) from None
        except asyncio.CancelledError:
            if backend is not None:
                self._background(backend.cancel())
            raise
        except psycopg.Error as exc:  # libpq's own: the connection is lost
            if backend is not None:
                backend.close()
            raise Problem(400, "connection closed") from exc
        except Problem:
            # After an error outside of a transaction Neon's proxy does not use the backend again.
            if backend is not None:
                self._give_back(route, login, backend, keep=not batch.alone)
            raise
        self._give_back(route, login, backend, keep=True)
        return content

    async def _alone(self, backend: Backend, batch: Batch, answer: _Answer) -> str:
        return await answer.to(backend, batch.queries[0])

    async def _together(self, backend: Backend, batch: Batch, answer: _Answer) -> str:
        """Run all in a transaction. Whether it is still open between them is not asked: Neon's proxy does not, either."""
        await backend.command(answer.modes.begin)
        try:
            results = [await answer.to(backend, query) for query in batch.queries]
        except Problem:
            if backend.pgconn.status == ConnStatus.OK and backend.pgconn.transaction_status != TransactionStatus.ACTIVE:
                await backend.command(b"ROLLBACK")
            raise
        await backend.command(b"COMMIT")
        return '{"results":[' + ",".join(results) + "]}"

    async def _take(self, route: Route, login: Login) -> Backend:
        idle = self._idle[route, login]
        while idle:
            backend = idle.pop()
            if backend.usable:
                return backend
            backend.close()
        return await Backend.connect(route, login)

    def _give_back(self, route: Route, login: Login, backend: Backend, *, keep: bool) -> None:
        idle = self._idle[route, login]
        if keep and backend.usable and len(idle) < _MOST_IDLE:
            idle.append(backend)
            asyncio.get_running_loop().call_later(_LONGEST_IDLE, self._expire, idle, backend)
        else:
            backend.close()

    def _expire(self, idle: list[Backend], backend: Backend) -> None:
        if backend in idle:
            idle.remove(backend)
            backend.close()

    def _background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class _Answer:
    """The answer to a request, as it grows."""

    def __init__(self, modes: Modes, limit: int) -> None:
        self.modes = modes
        self.too_large: Problem | None = None
        self._limit = limit
        self._size = 0

    async def to(self, backend: Backend, query: Query) -> str:
        """Run a statement to its end, also where its rows are too many: it is committed then. Return the JSON of its result."""
        array = self.modes.array if query.array is None else query.array
        found: list[str] = []
        error: Problem | None = None
        tag = b""
        async for result in backend.execute(query):
            last = result
            tag = result.command_status or tag  # libpq's last result has none where the rows before it are less than asked for
            if result.status in _COPIES:
                backend.close()
                raise Problem(400, "unexpected message from server")
            if result.status == ExecStatus.FATAL_ERROR:
                error = error or Problem.of_result(result)  # where the connection is lost, libpq adds one of its own
            elif result.status in _ROWS and self.too_large is None:
                for row in sql_over_http.rows(result, raw=self.modes.raw, array=array):
                    found.append(row)
                    self._size += len(row.encode()) + 1
                    if self._size > self._limit:
                        self.too_large = Problem(507, f"response is too large (max is {self._limit} bytes)")
                        found.clear()
                        break
        if problem := error or self.too_large:
            raise problem
        command, count = sql_over_http.command_and_count(tag.decode())
        return (
            f'{{"fields":{sql_over_http.fields(last)},"rows":[{",".join(found)}],"command":"{command}",'
            f'"rowCount":{"null" if count is None else count},"rowAsArray":{"true" if array else "false"}}}'
        )
