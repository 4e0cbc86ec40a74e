"""DB-API 2.0 (PEP 249) over HTTPS, for what is written against it. `connect()` and `connect_async()`.

There is no transaction that stays open between two statements. So, unless `autocommit` is set, a connection only reads: each
read travels by itself and READ ONLY, which is what READ COMMITTED shows it anyway, and whatever may write is refused before
anything is sent, with what to write instead. Nothing is committed that its caller believes to be in a transaction.

With `autocommit=True` each statement is a transaction of its own, and `connection.batch()` is one of several.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NoReturn, Self, Unpack

from ps_http._plan import Refused
from ps_http._request import ISOLATION_LEVELS, Modes
from ps_http._work import refused
from ps_http.client import AsyncBatch, AsyncClient, Batch, Client

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence

    import psycopg
    from psycopg import (
        BINARY,
        DATETIME,
        NUMBER,
        ROWID,
        STRING,
        Binary,
        DatabaseError,
        DataError,
        Date,
        DateFromTicks,
        Error,
        IntegrityError,
        InterfaceError,
        InternalError,
        NotSupportedError,
        OperationalError,
        ProgrammingError,
        Time,
        TimeFromTicks,
        Timestamp,
        TimestampFromTicks,
        Warning,  # noqa: A004 - PEP 249's name
    )
    from psycopg.abc import AdaptContext
    from psycopg.abc import Query as AnyQuery
    from psycopg.adapt import AdaptersMap

    from ps_core.topology import Endpoint, Topology, TopologySettings
    from ps_http._plan import Work
    from ps_http.result import Result

    Params = Sequence[Any] | Mapping[str, Any]

__all__ = [
    "BINARY",
    "DATETIME",
    "NUMBER",
    "ROWID",
    "STRING",
    "AsyncConnection",
    "AsyncCursor",
    "Binary",
    "Connection",
    "Cursor",
    "DataError",
    "DatabaseError",
    "Date",
    "DateFromTicks",
    "Error",
    "IntegrityError",
    "InterfaceError",
    "InternalError",
    "NotSupportedError",
    "OperationalError",
    "ProgrammingError",
    "Time",
    "TimeFromTicks",
    "Timestamp",
    "TimestampFromTicks",
    "Warning",
    "apilevel",
    "connect",
    "connect_async",
    "paramstyle",
    "threadsafety",
]

apilevel: Final = "2.0"
threadsafety: Final = 2
"""Threads may share a connection."""
paramstyle: Final = "pyformat"
"""`%s` and `%(name)s`, as psycopg has them."""

_WRITES: Final = (
    "the statement may write, and no transaction can stay open over HTTPS in which it could be committed later: connect with"
    " autocommit=True, where each statement is committed by itself; write `with connection.batch() as batch:` for several in one"
    ' transaction; or connect with ps_core.connect(..., transport="websocket"), which is PostgreSQL itself over the same port'
)
_SNAPSHOT: Final = (
    "isolation_level: without autocommit, each read is a transaction of its own, so that several cannot share one snapshot:"
    " write `with connection.batch(isolation=...) as batch:`"
)

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        # PEP 249's exceptions and types are psycopg's, which is not imported before one of them is asked for.
        if name in __all__ or name == "adapters":
            import psycopg

            return getattr(psycopg, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class _Connection:
    """What both connections decide."""

    refusal = _WRITES
    """What is said of a statement that may write, without autocommit."""

    def __init__(self, client: Any, *, autocommit: bool) -> None:
        self.client: Any = client
        """The `ps_http.Client`, or `AsyncClient`."""
        self.autocommit = autocommit
        """Whether each statement is committed by itself. Else the connection only reads."""
        self._isolation: str | None = None
        self.read_only: bool | None = None
        """True: each statement is sent READ ONLY."""
        self.deferrable: bool | None = None
        self.closed = False

    @property
    def only_reads(self) -> bool:
        """Whether everything is sent READ ONLY."""
        return bool(self.read_only) or not self.autocommit

    @property
    def isolation_level(self) -> str | None:
        """The isolation level of each statement's transaction ("serializable", ...); None: as the role has it."""
        return self._isolation

    @isolation_level.setter
    def isolation_level(self, value: str | None) -> None:
        if value is not None and value.lower() not in ISOLATION_LEVELS:
            raise ValueError(f"isolation_level: write one of {', '.join(map(repr, ISOLATION_LEVELS))}, not {value!r}")
        self._isolation = None if value is None else value.lower()

    @property
    def adapters(self) -> AdaptersMap:
        """Psycopg's adapters for this connection."""
        found: AdaptersMap = self.client.adapters
        return found

    @property
    def connection(self) -> None:
        """None: an `AdaptContext` of psycopg's has one."""

    def _work(self, query: AnyQuery, params: Params | None) -> Work:
        self._check()
        work: Work = self.client._one(query, params)
        if not self.autocommit:
            if self._isolation not in (None, "read committed", "read uncommitted"):
                raise refused(Refused(_SNAPSHOT))
            if not work.reads and not self.read_only:
                raise refused(Refused(self.refusal))
        modes = Modes(
            isolation=self._isolation,
            # Without autocommit, a statement that looks like a read and writes is refused by the server (25006).
            read_only=self.only_reads,
            deferrable=bool(self.deferrable),
        )
        try:
            return work.with_modes(modes)
        except Refused as exc:
            raise refused(exc) from None

    def _check(self) -> None:
        if self.closed:
            import psycopg

            raise psycopg.InterfaceError("the connection is closed")

    def _raise_no_transaction(self) -> NoReturn:
        self.client.transaction()
        raise AssertionError

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {'closed' if self.closed else 'of'} {self.client!r}>"


class _Cursor:
    """What both cursors decide: how the rows of a result are handed out."""

    arraysize = 1

    def __init__(self, connection: Any) -> None:
        self.connection: Any = connection
        self._result: Result | None = None
        self._at = 0
        self._count = -1
        self.closed = False

    @property
    def description(self) -> list[psycopg.Column] | None:
        """What psycopg tells of each column, a sequence of PEP 249's seven; None: the statement returns no rows."""
        if self._result is None or not self._result.columns:
            return None
        return self.connection.client._adapt().describe(self._result.columns)  # type: ignore[no-any-return]

    @property
    def rowcount(self) -> int:
        """How many rows the statement returned or changed; -1: nobody says."""
        return self._count

    @property
    def rownumber(self) -> int | None:
        """The index of the next row."""
        return None if self.description is None else self._at

    @property
    def statusmessage(self) -> str | None:
        """The command tag, as far as the protocol reports it."""
        return None if self._result is None else self._result.statusmessage

    def setinputsizes(self, sizes: object) -> None:
        """Do nothing: PEP 249 allows that."""

    def setoutputsize(self, size: object, column: object = None) -> None:
        """Do nothing: PEP 249 allows that."""

    def _check(self) -> None:
        if self.closed:
            import psycopg

            raise psycopg.InterfaceError("the cursor is closed")

    def _begin(self) -> None:
        self._check()
        self._result, self._at, self._count = None, 0, -1

    def _take(self, result: Result | None, count: int) -> None:
        self._result, self._count = result, count

    def _rows(self, size: int | None) -> list[tuple[Any, ...]]:
        self._check()
        if self._result is None or not self._result.columns:
            import psycopg

            raise psycopg.ProgrammingError("the last operation didn't produce a result")
        end = len(self._result) if size is None else self._at + size
        rows = self._result[self._at : end]
        self._at += len(rows)
        return rows


class Cursor(_Cursor):
    """PEP 249's cursor."""

    connection: Connection

    def execute(self, query: AnyQuery, params: Params | None = None, **_: Any) -> Self:
        """Run a statement; see `ps_http.Client.execute`. Without autocommit, one that may write is refused.

        Raises:
            psycopg.Error: see there.
        """
        self._begin()
        connection = self.connection
        (raw,) = connection.client._do(connection._work(query, params))
        result = connection.client._load(raw)
        self._take(result, result.rowcount)
        return self

    def executemany(self, query: AnyQuery, params_seq: Iterable[Params], **_: Any) -> None:
        """Run a statement for each of several parameters, in one request and one transaction.

        Raises:
            psycopg.Error: see `execute`.
        """
        self._begin()
        given = list(params_seq)
        for params in given[:1]:
            self.connection._work(query, params)  # refuses
        with self.connection.batch(read_only=self.connection.only_reads) as batch:
            pending = batch.executemany(query, given)
        self._take(None, sum(max(one.result.rowcount, 0) for one in pending))

    def fetchone(self) -> tuple[Any, ...] | None:
        """Return the next row; None: there is no other."""
        return next(iter(self._rows(1)), None)

    def fetchmany(self, size: int | None = None) -> list[tuple[Any, ...]]:
        """Return the next `size` rows (`arraysize` by default)."""
        return self._rows(size or self.arraysize)

    def fetchall(self) -> list[tuple[Any, ...]]:
        """Return the rows that are left."""
        return self._rows(None)

    def close(self) -> None:
        """Close it."""
        self.closed = True

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        while row := self._rows(1):
            yield row[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Connection(_Connection):
    """PEP 249's connection."""

    client: Client

    def cursor(self, *_: Any, **__: Any) -> Cursor:
        """Return a cursor."""
        self._check()
        return Cursor(self)

    def execute(self, query: AnyQuery, params: Params | None = None) -> Cursor:
        """Run a statement on a new cursor, which is returned."""
        return self.cursor().execute(query, params)

    def batch(self, *, isolation: str | None = None, read_only: bool | None = None, deferrable: bool | None = None) -> Batch:
        """Return a block whose statements are one request and one transaction, committed at its end; see `ps_http.Client.batch`.

        What is not given is as the connection's attributes say.
        """
        self._check()
        return self.client.batch(**_batch_modes(self, isolation, read_only, deferrable))

    def commit(self) -> None:
        """Do nothing: with autocommit all is committed, and without it nothing was written."""
        self._check()

    def rollback(self) -> None:
        """Do nothing: nothing is open. With autocommit, as in psycopg, what was executed is committed, and stays."""
        self._check()

    def transaction(self, *_: object, **__: object) -> NoReturn:
        """Refuse: there is none that stays open.

        Raises:
            psycopg.NotSupportedError: always; its message says what to write instead.
        """
        self._raise_no_transaction()

    def close(self) -> None:
        """Close it. The connections over TLS are those of all clients of the endpoint, and stay."""
        self.closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncCursor(_Cursor):
    """The same for asyncio."""

    connection: AsyncConnection

    async def execute(self, query: AnyQuery, params: Params | None = None, **_: Any) -> Self:
        """Run a statement; see `Cursor.execute`."""
        self._begin()
        connection = self.connection
        (raw,) = await connection.client._do(connection._work(query, params))
        result = connection.client._load(raw)
        self._take(result, result.rowcount)
        return self

    async def executemany(self, query: AnyQuery, params_seq: Iterable[Params], **_: Any) -> None:
        """Run a statement for each of several parameters; see `Cursor.executemany`."""
        self._begin()
        given = list(params_seq)
        for params in given[:1]:
            self.connection._work(query, params)  # refuses
        async with self.connection.batch(read_only=self.connection.only_reads) as batch:
            pending = batch.executemany(query, given)
        self._take(None, sum(max(one.result.rowcount, 0) for one in pending))

    async def fetchone(self) -> tuple[Any, ...] | None:
        """Return the next row; None: there is no other."""
        return next(iter(self._rows(1)), None)

    async def fetchmany(self, size: int | None = None) -> list[tuple[Any, ...]]:
        """Return the next `size` rows (`arraysize` by default)."""
        return self._rows(size or self.arraysize)

    async def fetchall(self) -> list[tuple[Any, ...]]:
        """Return the rows that are left."""
        return self._rows(None)

    async def close(self) -> None:
        """Close it."""
        self.closed = True

    async def __aiter__(self) -> AsyncIterator[tuple[Any, ...]]:
        while row := self._rows(1):
            yield row[0]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class AsyncConnection(_Connection):
    """The same for asyncio."""

    client: AsyncClient

    def cursor(self, *_: Any, **__: Any) -> AsyncCursor:
        """Return a cursor."""
        self._check()
        return AsyncCursor(self)

    async def execute(self, query: AnyQuery, params: Params | None = None) -> AsyncCursor:
        """Run a statement on a new cursor, which is returned."""
        return await self.cursor().execute(query, params)

    def batch(self, *, isolation: str | None = None, read_only: bool | None = None, deferrable: bool | None = None) -> AsyncBatch:
        """Return a block whose statements are one request and one transaction; see `Connection.batch`."""
        self._check()
        return self.client.batch(**_batch_modes(self, isolation, read_only, deferrable))

    async def commit(self) -> None:
        """Do nothing; see `Connection.commit`."""
        self._check()

    async def rollback(self) -> None:
        """Do nothing; see `Connection.rollback`."""
        self._check()

    def transaction(self, *_: object, **__: object) -> NoReturn:
        """Refuse; see `Connection.transaction`."""
        self._raise_no_transaction()

    async def close(self) -> None:
        """Close it; see `Connection.close`."""
        self.closed = True

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def _batch_modes(
    connection: _Connection, isolation: str | None, read_only: bool | None, deferrable: bool | None
) -> dict[str, Any]:
    return {
        "isolation": connection.isolation_level if isolation is None else isolation,
        "read_only": bool(connection.read_only if read_only is None else read_only),
        "deferrable": bool(connection.deferrable if deferrable is None else deferrable),
    }


def connect(
    conninfo: str | Topology | Endpoint,
    *,
    autocommit: bool = False,
    to: str = "primary",
    context: AdaptContext | None = None,
    **settings: Unpack[TopologySettings],
) -> Connection:
    """Return a connection. Nothing is sent yet.

    Args:
        conninfo: A role's URL, a `Topology`, or one `Endpoint`.
        autocommit: Whether each statement is committed by itself; else the connection only reads.
        to: "primary" (with reads on replicas, where there are some), or "direct".
        context: As psycopg's: what has the adapters to begin with.
        settings: With a URL, the topology's settings.

    Raises:
        ConfigurationError: if the settings are invalid, or cannot work over HTTPS.
    """
    client = Client(conninfo, to=to, **settings)
    if context is not None:
        client._adapt(context)
    return Connection(client, autocommit=autocommit)


async def connect_async(
    conninfo: str | Topology | Endpoint,
    *,
    autocommit: bool = False,
    to: str = "primary",
    context: AdaptContext | None = None,
    **settings: Unpack[TopologySettings],
) -> AsyncConnection:
    """Return a connection for asyncio; see `connect`.

    Raises:
        ConfigurationError: if the settings are invalid, or cannot work over HTTPS.
    """
    client = AsyncClient(conninfo, to=to, **settings)
    if context is not None:
        client._adapt(context)
    return AsyncConnection(client, autocommit=autocommit)
