"""Looking: name, port, TLS, login, pooler and server of each path. All waiting is bounded; nothing on the server is changed."""

from __future__ import annotations

import select
import socket
import ssl
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal
from urllib.parse import quote
from uuid import uuid4

import psycopg
from psycopg import pq
from psycopg.adapt import Transformer

from ps_cli._doctor.findings import kind_of, public_address
from ps_cli._doctor.https import STEP, addresses_of, fault_of, see_https, trusting
from ps_cli._doctor.seen import PathSeen, PoolerSeen, SessionSeen, TlsSeen
from ps_core import conninfo
from ps_core._diagnosis import PROCESS, QUESTION, share_a_server
from ps_core.failures import classify

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from concurrent.futures import Future

    from psycopg.pq.abc import PGresult

    from ps_cli._doctor.seen import HttpsSeen
    from ps_core._diagnosis import Answer
    from ps_core.topology import Endpoint

__all__ = ["masked", "observe"]

LOGIN: Final = 3
"""Seconds for a login; libpq counts whole ones."""
LAG: Final = 2.0
"""Seconds for a replica to replay what the primary has written."""
_ALPN: Final = "postgresql"
_SSL_REQUEST: Final = bytes.fromhex("00000008 04d2162f")
_CLOCK: Final = "SELECT extract(epoch FROM clock_timestamp())::float8"


def observe(endpoints: Sequence[Endpoint], *, addresses: Mapping[str, str] | None = None) -> list[PathSeen]:
    """Return what was seen of each endpoint, asked in parallel.

    `addresses` stand in for what the resolver would say of a host, as in curl's --resolve.
    """
    given = addresses or {}
    ways = {_way_of(endpoint): endpoint for endpoint in endpoints if kind_of(endpoint.host) == "name"}
    with ExitStack() as stack, ThreadPoolExecutor(len(endpoints) + len(ways), "ps-doctor") as pool:
        https = {way: pool.submit(see_https, endpoint, given) for way, endpoint in ways.items()}
        looks = [_Look(endpoint, given, stack, https.get(_way_of(endpoint))) for endpoint in endpoints]
        list(pool.map(_Look.follow, looks))
        position = next((found for look in looks if (found := look.position()) is not None), None)
        if position is not None:
            list(pool.map(partial(_Look.measure_lag, position=position), looks))
        return [look.finish() for look in looks]


def _way_of(endpoint: Endpoint) -> tuple[str, int, int]:
    return endpoint.host, endpoint.https_port, endpoint.port


class _Look:
    """One path while it is being followed."""

    def __init__(
        self, endpoint: Endpoint, addresses: Mapping[str, str], stack: ExitStack, https: Future[HttpsSeen] | None
    ) -> None:
        self.seen = PathSeen(endpoint=endpoint)
        self._endpoint = endpoint
        self._given = addresses
        self._stack = stack
        self._https = https
        self._conn: psycopg.Connection[Any] | None = None
        self._seconds: dict[str, float] = {}

    def follow(self) -> None:
        """Go as far as the path leads."""
        address = self._by_websocket() if self._endpoint.transport == "websocket" else self._by_tcp()
        if address is None:
            return
        with self._step("login"):
            try:
                self._conn = self._stack.enter_context(closing(self._connect(address)))
            except psycopg.Error as exc:
                self._refused(exc)
                return
        with self._step("server"):
            try:
                self._note(session=self._ask_server(self._conn, partial(self._connect, address)))
            except (psycopg.Error, TimeoutError) as exc:
                self._conn = None
                self._refused(exc)

    def finish(self) -> PathSeen:
        """Return all that was seen."""
        if self._https is not None:
            self._note(https=self._https.result())
        return self.seen

    def _by_tcp(self) -> str | None:
        """Return the address to log in at, or None."""
        with self._step("name"):
            self._note(**self._resolve())
        if self.seen.dns_error or public_address(self._endpoint.host, self.seen.addresses):
            return None
        with self._step("port"):
            address = self._reach()
        if address is not None and kind_of(address) != "socket":
            with self._step("TLS"):
                try:
                    self._note(tls=_see_tls(address, self._endpoint, self._name_at(address)))
                except TimeoutError:
                    self._note(port_error="it accepts connections and does not answer")
                    return None
        return address

    def _by_websocket(self) -> str | None:
        """Return "", since the bridge finds the address, or None where it could not log in."""
        assert self._https is not None  # the host is a name, or the endpoint had been refused
        with self._step("HTTPS"):
            seen = self._https.result()
        return "" if seen.websocket or seen.is_opaque else None

    def position(self) -> str | None:
        """Return how far the primary has written, if this path leads to it."""
        session = self.seen.session
        if self._conn is None or session is None or session.in_recovery:
            return None
        with suppress(psycopg.Error, TimeoutError):
            position: str = _ask(self._conn, "SELECT pg_current_wal_flush_lsn()")[0]
            return position
        return None

    def measure_lag(self, position: str) -> None:
        """Wait until this replica has replayed `position`."""
        session = self.seen.session
        if self._conn is None or session is None or not session.in_recovery:
            return
        # A pooler may lead to another replica each time: four answers in a row have to be good.
        query = f"SELECT greatest('{position}'::pg_lsn - pg_last_wal_replay_lsn(), 0)::bigint"
        began, behind, arrived = time.monotonic(), 0, 0
        lag: float | None = None
        with suppress(psycopg.Error, TimeoutError):
            while time.monotonic() - began < LAG and arrived < 4:
                rest = _ask(self._conn, query)[0]
                behind = max(behind, rest)
                arrived = 0 if rest else arrived + 1
                if rest:
                    time.sleep(0.02)
            if arrived == 4:
                lag = time.monotonic() - began if behind else 0.0
            self._note(session=replace(session, lag=lag, behind=behind))

    # --- steps ---

    def _resolve(self) -> dict[str, Any]:
        addresses: list[str] = []
        params = dict(self._endpoint.params)
        for host in params.get("hostaddr", self._endpoint.host).split(","):
            if host in self._given:
                addresses.append(self._given[host])
            else:
                try:
                    addresses += addresses_of(host)
                except OSError as exc:
                    return {"dns_error": exc.strerror or f"no answer within {STEP:g} s"}
        return {"addresses": tuple(dict.fromkeys(addresses))}

    def _reach(self) -> str | None:
        """Return the first address that answers, as libpq would take it."""
        why: list[str] = []
        for address in self.seen.addresses:
            if not address:  # libpq's own folder of Unix sockets, which only it knows
                return address
            try:
                with _open(address, self._endpoint.port, STEP / len(self.seen.addresses)):
                    return address
            except OSError as exc:
                why.append(exc.strerror or "no answer")
        self._note(port_error=", ".join(dict.fromkeys(why)))
        return None

    def _connect(self, address: str, **options: Any) -> psycopg.Connection[Any]:
        params = {**conninfo(self._endpoint), "connect_timeout": LOGIN, **options}
        if kind_of(address) != "socket":
            params |= {"host": self._name_at(address), "hostaddr": address}
        elif address:
            params["host"] = address
        return psycopg.connect(**params, autocommit=True, prepare_threshold=None)

    def _name_at(self, address: str) -> str:
        """Return the one host name for libpq to check: with several hosts, the one that has this address."""
        hosts = self._endpoint.host.split(",")
        if len(hosts) > 1 and len(hosts) == len(self.seen.addresses):
            return hosts[self.seen.addresses.index(address)]
        return hosts[0]

    def _ask_server(self, conn: psycopg.Connection[Any], connect: Callable[..., psycopg.Connection[Any]]) -> SessionSeen:
        seen = SessionSeen.of(_ask(conn, QUESTION), pid=conn.info.backend_pid)
        round_trip, clock_ahead = min(_time_trip(conn) for _ in range(5))
        pooler = _see_pooler(conn, connect, seen) if seen.behind_pooler and self._endpoint.pooled else None
        return replace(seen, pooler=pooler, round_trip=round_trip, clock_ahead=clock_ahead)

    # --- notes ---

    def _note(self, **what: Any) -> None:
        self.seen = replace(self.seen, **what)

    def _refused(self, exc: Exception) -> None:
        rule = "no_answer" if isinstance(exc, TimeoutError) else classify(exc).rule
        self._note(refusal=masked(str(exc), self._endpoint.password), refusal_rule=rule)

    @contextmanager
    def _step(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[name] = time.perf_counter() - began
            self._note(seconds=dict(self._seconds))


def masked(text: str, password: str) -> str:
    """Return a text without the password, in whatever form it may be in it."""
    for secret in filter(None, (password, quote(password, safe=""), quote(password))):
        text = text.replace(secret, "***")
    return text


def _open(address: str, port: int, seconds: float) -> socket.socket:
    """Connect to a port, or to the Unix socket in a folder.

    Raises:
        OSError: nothing answers.
    """
    if kind_of(address) != "socket":
        return socket.create_connection((address, port), seconds)
    path = f"{address}/.s.PGSQL.{port}"
    raw = socket.socket(socket.AF_UNIX)
    try:
        raw.settimeout(seconds)
        raw.connect("\0" + path[1:] if path.startswith("@") else path)
    except OSError:
        raw.close()
        raise
    return raw


# --- TLS ---


def _see_tls(address: str, endpoint: Endpoint, name: str) -> TlsSeen:
    """Shake hands as verify-full would.

    Raises:
        TimeoutError: there was no answer.
    """
    params = dict(endpoint.params)
    shake = partial(_shake_hands, address, endpoint.port, name)
    fault: Literal["", "chain", "name", "date", "handshake"] = ""
    reason = ""
    try:
        try:
            protocol = shake(trusting(params.get("sslrootcert", ""), _ALPN))
        except ssl.SSLCertVerificationError as exc:
            fault, reason = fault_of(exc), exc.verify_message
            protocol = shake(trusting(None, _ALPN))
    except TimeoutError:
        raise
    except OSError as exc:  # ssl.SSLError is one
        return TlsSeen(offered=True, fault="handshake", reason=getattr(exc, "reason", None) or exc.strerror or "no answer")
    if protocol is None:
        return TlsSeen(offered=False)
    direct = False
    with suppress(OSError):
        direct = shake(trusting(None, _ALPN), direct=True) is not None
    return TlsSeen(offered=True, protocol=protocol, fault=fault, reason=reason, direct=direct)


def _shake_hands(address: str, port: int, name: str, context: ssl.SSLContext, *, direct: bool = False) -> str | None:
    """Return the protocol's version; None where the server does not do that.

    Raises:
        OSError: the handshake failed.
    """
    with _open(address, port, STEP) as raw:
        if not direct:
            raw.sendall(_SSL_REQUEST)
            if raw.recv(1) != b"S":
                return None
        with context.wrap_socket(raw, server_hostname=name or address) as tls:
            return tls.version() if not direct or tls.selected_alpn_protocol() == "postgresql" else None


# --- pooler ---


def _see_pooler(first: psycopg.Connection[Any], connect: Callable[..., psycopg.Connection[Any]], answer: Answer) -> PoolerSeen:
    options: Literal["refused", "dropped", "passed"] | None = None
    try:
        with closing(connect(options="-c statement_timeout=61234")) as conn:
            options = "passed" if _ask(conn, "SHOW statement_timeout")[0] == "61234ms" else "dropped"
    except TimeoutError:
        return PoolerSeen()
    except psycopg.Error as exc:
        options = "refused" if classify(exc).rule == "startup_parameter" else None
    try:
        with closing(connect()) as second:
            shares = share_a_server(partial(_process, first), partial(_process, second))
            if not shares and answer.in_recovery:
                # One of several servers, a different one each time.
                return PoolerSeen(options=options)
            return PoolerSeen(shares=shares, prepares=_sees_prepared(first, second) if shares else None, options=options)
    except (psycopg.Error, TimeoutError):
        return PoolerSeen(options=options)


def _process(conn: psycopg.Connection[Any]) -> int:
    pid: int = _ask(conn, PROCESS)[0]
    return pid


def _sees_prepared(first: psycopg.Connection[Any], second: psycopg.Connection[Any]) -> bool | None:
    """Prepare a statement of one name as two clients: on one server connection, only a pooler that renames lets them."""
    name = f"ps_doctor_{uuid4().hex}"
    for _ in range(5):
        made = [_prepare(conn, name) for conn in (first, second)]
        pids = [_process(conn) for conn in (first, second)]
        if made == [True, True] and pids[0] == pids[1]:
            return True
        for conn in (first, second):
            _forget(conn, name)
        if made == [True, False]:
            return False
        name += "_"
    return None


def _prepare(conn: psycopg.Connection[Any], name: str) -> bool:
    conn.pgconn.send_prepare(name.encode(), b"SELECT 1")
    return _result(conn).status == pq.ExecStatus.COMMAND_OK


def _forget(conn: psycopg.Connection[Any], name: str) -> None:
    """Remove the statement from the pooler's server connection, if it is there."""
    with suppress(psycopg.Error):
        _ask(conn, f"DEALLOCATE {name}")


# --- asking ---


def _time_trip(conn: psycopg.Connection[Any]) -> tuple[float, float]:
    """Return the seconds of a round trip, and those that the server's clock is ahead of ours."""
    before, began = time.time(), time.perf_counter()
    (clock,) = _ask(conn, _CLOCK)
    took = time.perf_counter() - began
    return took, clock - before - took / 2


def _ask(conn: psycopg.Connection[Any], query: str) -> tuple[Any, ...]:
    """Return the first row. Not by psycopg's cursors, whose waiting has no limit.

    Raises:
        TimeoutError: there was no answer within a step's time.
        psycopg.Error: there was an error.
    """
    conn.pgconn.send_query(query.encode())
    result = _result(conn)
    if result.status not in (pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK):
        raise psycopg.errors.error_from_result(result)
    transformer = Transformer(conn)
    transformer.set_pgresult(result)
    return transformer.load_row(0, tuple) or ()


def _result(conn: psycopg.Connection[Any]) -> PGresult:
    """Return the last result; it waits no longer than a step may take."""
    pgconn, until = conn.pgconn, time.monotonic() + STEP
    last: PGresult | None = None
    while True:
        while pgconn.flush() or pgconn.is_busy():
            if not select.select([pgconn.socket], [], [], max(0.0, until - time.monotonic()))[0]:
                raise TimeoutError(f"no answer within {STEP:g} s")
            pgconn.consume_input()
        result = pgconn.get_result()
        if result is None:
            assert last is not None  # something was sent
            return last
        last = result
