"""`Client` and `AsyncClient`: statements over HTTPS, each a round trip and a transaction."""

from __future__ import annotations

import time
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import TYPE_CHECKING, Any, Final, Generic, NoReturn, Self, TypeVar, Unpack

from ps_core._names import given_to_complete
from ps_core._plain_errors import ConfigurationError
from ps_core.tags import current_comment, with_comment
from ps_core.topology import Endpoint, Topology, TopologySettings, check_side
from ps_http._plan import Refused, make_work
from ps_http._request import ISOLATION_LEVELS, Modes
from ps_http._transport import Lost
from ps_http._values import Query, plain_loaders, plain_query, psycopg_is_there
from ps_http._work import Send, Site, perform, refused
from ps_http.result import Pending, Result

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Mapping, Sequence
    from types import TracebackType

    from psycopg.abc import AdaptContext
    from psycopg.abc import Query as AnyQuery
    from psycopg.adapt import AdaptersMap

    from ps_http._adapting import Adapting
    from ps_http._answer import Raw
    from ps_http._plan import Work
    from ps_http._work import Wait

    Params = Sequence[Any] | Mapping[str, Any]

__all__ = ["AsyncBatch", "AsyncClient", "Batch", "Client"]

C = TypeVar("C", bound="_Base")

_INTERACTIVE: Final = (
    "a transaction that stays open between requests cannot be had over HTTPS: write `with client.batch() as batch:`, whose"
    " statements are one transaction and return their results at its end; where a later one depends on what an earlier one"
    ' returned, connect with ps_core.connect(..., transport="websocket"), which is PostgreSQL itself over the same port'
)


class _Base:
    """What both clients decide."""

    connection: Final = None
    """An `AdaptContext` of psycopg's has one."""

    def __init__(self, target: str | Topology | Endpoint, *, to: str = "primary", **settings: Unpack[TopologySettings]) -> None:
        """Take a role's URL, a `Topology` or an `Endpoint`. Nothing is sent yet.

        Args:
            target: A role's URL as PlanetScale shows it, a `Topology`, or one `Endpoint`.
            to: "primary", with reads on the replicas where the topology has some; or "direct".
            settings: With a URL, the topology's settings (`bouncer`, `statement_timeout`, ...).

        Raises:
            ConfigurationError: if the settings are invalid, or cannot work over HTTPS.
        """
        if to not in ("primary", "direct"):
            raise ConfigurationError(f"to: write 'primary' or 'direct', not {to!r}")
        if not isinstance(target, Topology | Endpoint):
            target = Topology.from_url(target, **settings)
        elif settings:
            raise given_to_complete(target, settings)
        elif isinstance(target, Endpoint):
            check_side(target, to)
        self._site = Site(target, to)
        self._adapting: Adapting | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._site.primary.endpoint!r}>"

    @property
    def adapters(self) -> AdaptersMap:
        """Psycopg's adapters for this client: types are registered on it as on a connection (`register_enum(info, client)`)."""
        return self._adapt().adapters

    def _adapt(self, context: AdaptContext | None = None) -> Adapting:
        if self._adapting is None:
            from ps_http._adapting import Adapting

            self._adapting = Adapting(context)
        return self._adapting

    def _query(self, query: AnyQuery, params: Params | None) -> Query:
        plain = None if psycopg_is_there() else plain_query(query, params)
        found = self._adapt().query(query, params) if plain is None else plain
        tags = current_comment()
        return Query(with_comment(found.text.encode(), tags).decode(), found.params) if tags else found

    def _load(self, raw: Raw) -> Result:
        oids = [column.type_code for column in raw.columns]
        loaders = None if psycopg_is_there() else plain_loaders(oids)
        if loaders is not None:
            try:
                rows = [
                    tuple([None if text is None else load(text) for text, load in zip(row, loaders, strict=True)])
                    for row in raw.rows
                ]
            except (ValueError, ArithmeticError):  # what psycopg reads in another way, or refuses
                loaders = None
        if loaders is None:
            try:
                rows = self._adapt().load(oids, raw.rows)
            except Exception as exc:  # noqa: BLE001 - of a loader: the statement is done, and is not to seem undone
                return Result(raw, exc)
        return Result(raw, rows)

    def _one(self, query: AnyQuery, params: Params | None) -> Work:
        converted = self._query(query, params)
        template = query if isinstance(query, str) else converted.text
        known = template in self._site.primary.refused_read_only
        try:
            return make_work([converted], known_to_write=known, memory=template)
        except Refused as exc:
            raise refused(exc) from None

    def transaction(self) -> NoReturn:
        """Refuse: there is none over HTTPS that stays open between requests.

        Raises:
            psycopg.NotSupportedError: always; its message says what to write instead.
        """
        raise refused(Refused(_INTERACTIVE))


class _Statements(Generic[C]):
    """What is put together in a batch."""

    def __init__(self, client: C, *, isolation: str | None, read_only: bool, deferrable: bool) -> None:
        if isolation is not None and isolation.lower() not in ISOLATION_LEVELS:
            raise ConfigurationError(f"isolation: write one of {', '.join(map(repr, ISOLATION_LEVELS))}, not {isolation!r}")
        self._client = client
        self._modes = Modes(
            isolation=None if isolation is None else isolation.lower(), read_only=read_only, deferrable=deferrable
        )
        self._queries: list[Query] = []
        self._pending: list[Pending] = []
        self._begun = self._over = False

    def execute(self, query: AnyQuery, params: Params | None = None) -> Pending:
        """Add a statement. Its result is there when the block is over.

        Raises:
            psycopg.NotSupportedError: it controls transactions, needs a session, or is several.
            psycopg.Error: its parameters do not fit, or cannot be adapted.
        """
        if self._over:
            raise refused(Refused("the batch is over: begin another one"))
        converted = self._client._query(query, params)
        try:
            make_work([converted], is_batch=True)
        except Refused as exc:
            raise refused(exc) from None
        self._queries.append(converted)
        self._pending.append(Pending())
        return self._pending[-1]

    def executemany(self, query: AnyQuery, params: Iterable[Params]) -> list[Pending]:
        """Add a statement once for each of several parameters; or not at all, where it raises."""
        before = len(self._queries)
        try:
            return [self.execute(query, one) for one in params]
        except BaseException:
            del self._queries[before:], self._pending[before:]
            raise

    def _begin(self) -> None:
        if self._begun:  # at a second end, its statements would be sent once more
            raise refused(Refused("the batch was begun before: begin another one"))
        self._begun = True

    def _work(self) -> Work | None:
        self._over = True
        return make_work(self._queries, is_batch=True, modes=self._modes) if self._queries else None

    def _take(self, results: Sequence[Raw]) -> None:
        for pending, raw in zip(self._pending, results, strict=True):
            pending._result = self._client._load(raw)


class Batch(_Statements["Client"], AbstractContextManager["Batch"]):
    """Statements that are sent together at the end of the block, as one transaction: all of them take effect, or none."""

    def __enter__(self) -> Self:
        self._begin()
        return self

    def __exit__(self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None) -> None:
        work = self._work()
        if exc_type is None and work is not None:
            self._take(self._client._do(work))


class AsyncBatch(_Statements["AsyncClient"], AbstractAsyncContextManager["AsyncBatch"]):
    """The same for asyncio."""

    async def __aenter__(self) -> Self:
        self._begin()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        work = self._work()
        if exc_type is None and work is not None:
            self._take(await self._client._do(work))


class Client(_Base):
    """Runs statements by `POST /sql`. One may be shared by all threads; clients of one endpoint share their connections."""

    def execute(self, query: AnyQuery, params: Params | None = None) -> Result:
        """Run one statement in a transaction of its own, in one round trip, and return its result.

        Raises:
            psycopg.Error: the server's error, of psycopg's own class; `ps_core.CommitOutcomeUnknown` where a statement that may
                write was sent, and no answer tells what became of it; `psycopg.NotSupportedError` for what needs a session or a
                transaction that stays open; `ps_http.HttpError` where it was not PostgreSQL that answered.
            ps_core.DeadlineExceeded: the deadline of the block is over.
        """
        (raw,) = self._do(self._one(query, params))
        return self._load(raw)

    def executemany(self, query: AnyQuery, params: Iterable[Params]) -> list[Result]:
        """Run one statement for each of several parameters, in one round trip and one transaction."""
        with self.batch() as batch:
            pending = batch.executemany(query, params)
        return [one.result for one in pending]

    def batch(self, *, isolation: str | None = None, read_only: bool = False, deferrable: bool = False) -> Batch:
        """Return a block whose statements are sent together at its end, in one round trip and one transaction.

        `isolation` is one of PostgreSQL's levels ("serializable", ...). An exception in the block sends nothing.
        """
        return Batch(self, isolation=isolation, read_only=read_only, deferrable=deferrable)

    def close(self) -> None:
        """Close the connections without requests that clients of these endpoints share. The client can still be used."""
        for place in (self._site.primary, *self._site.replicas):
            place.transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _do(self, work: Work) -> tuple[Raw, ...]:
        steps: Generator[Send | Wait, Any, tuple[Raw, ...]] = perform(self._site, work)
        try:
            step = next(steps)
            while True:
                done = None
                try:
                    if isinstance(step, Send):
                        done = self._send(step)
                    else:
                        time.sleep(step.seconds)
                except Exception as exc:  # noqa: BLE001 - what it means is decided there
                    step = steps.throw(exc)
                else:
                    step = steps.send(done)
        except StopIteration as end:
            found: tuple[Raw, ...] = end.value
            return found

    @staticmethod
    def _send(step: Send) -> tuple[Raw, ...]:
        place = step.place
        try:
            with place.gate.turn(step.patience, place.endpoint.name):
                try:
                    answer = place.transport.post(step.request, connect=step.connect, until=step.until)
                except Lost as lost:
                    error = step.fail(lost)
                    raise error from error.__cause__
                return step.read(answer)
        except TimeoutError as exc:
            if type(exc) is TimeoutError:
                raise step.waited_in_vain() from None
            raise


class AsyncClient(_Base):
    """The same for asyncio. It needs the library httpx2 (the extra `http`), which is imported with the first request."""

    async def execute(self, query: AnyQuery, params: Params | None = None) -> Result:
        """Run one statement; see `Client.execute`."""
        (raw,) = await self._do(self._one(query, params))
        return self._load(raw)

    async def executemany(self, query: AnyQuery, params: Iterable[Params]) -> list[Result]:
        """Run one statement for each of several parameters; see `Client.executemany`."""
        async with self.batch() as batch:
            pending = batch.executemany(query, params)
        return [one.result for one in pending]

    def batch(self, *, isolation: str | None = None, read_only: bool = False, deferrable: bool = False) -> AsyncBatch:
        """Return a block whose statements are sent together at its end; see `Client.batch`."""
        return AsyncBatch(self, isolation=isolation, read_only=read_only, deferrable=deferrable)

    async def close(self) -> None:
        """Close the connections that clients of these endpoints share on this event loop. The client can still be used."""
        import asyncio

        for place in (self._site.primary, *self._site.replicas):
            transport = place.aio and place.aio.pop(asyncio.get_running_loop(), None)
            if transport:
                await transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _do(self, work: Work) -> tuple[Raw, ...]:
        import asyncio

        steps: Generator[Send | Wait, Any, tuple[Raw, ...]] = perform(self._site, work)
        try:
            step = next(steps)
            while True:
                done = None
                try:
                    if isinstance(step, Send):
                        done = await self._send(step)
                    else:
                        await asyncio.sleep(step.seconds)
                except Exception as exc:  # noqa: BLE001 - what it means is decided there
                    step = steps.throw(exc)
                else:
                    step = steps.send(done)
        except StopIteration as end:
            found: tuple[Raw, ...] = end.value
            return found

    @staticmethod
    async def _send(step: Send) -> tuple[Raw, ...]:
        from ps_http._aio import transport_of

        place = step.place
        try:
            async with place.gate.aturn(step.patience, place.endpoint.name):
                try:
                    answer = await transport_of(place).post(step.request, connect=step.connect, until=step.until)
                except Lost as lost:
                    error = step.fail(lost)
                    raise error from error.__cause__
                return step.read(answer)
        except TimeoutError as exc:
            if type(exc) is TimeoutError:
                raise step.waited_in_vain() from None
            raise
