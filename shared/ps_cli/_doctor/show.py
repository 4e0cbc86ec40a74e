"""Showing what was seen and found: to people, and as JSON to machines."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

import psycopg

from ps_cli._doctor.findings import TIMEOUTS, exit_status, kind_of, said

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from rich.console import Console

    from ps_cli._doctor.findings import Cap, Finding
    from ps_cli._doctor.seen import HttpsSeen, PathSeen, SessionSeen, TlsSeen
    from ps_core.topology import Endpoint

__all__ = ["as_json", "https_line", "show"]

_COLOURS: Final = {"error": "bold red", "warning": "bold yellow", "note": "bold cyan"}
_SUMMARY: Final = {0: ("good", "bold green"), 1: ("warnings", "bold yellow"), 2: ("errors", "bold red")}


def show(console: Console, paths: Sequence[PathSeen], chains: Sequence[Sequence[Cap]], findings: Sequence[Finding]) -> None:
    """Print what was seen of each path, the chains of caps, and the findings."""
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    for path in paths:
        endpoint = path.endpoint
        console.print(
            Text(endpoint.name, "bold").append(
                f"  {endpoint.user}@{endpoint.host}:{endpoint.port}/{endpoint.dbname}", "not bold"
            ),
            soft_wrap=True,
        )
        steps = Table.grid(padding=(0, 1))
        for good, name, detail in _steps(path):
            took = path.seconds.get(name)
            mark = Text("ok", "green") if good else Text("!!", "bold red")
            steps.add_row(mark, name, Text(detail), Text("" if took is None else f"{took * 1000:.0f} ms", "dim"))
        console.print(Padding(steps, (0, 0, 0, 2), expand=False))
    for https in _beside(paths):
        console.print(Text("HTTPS", "bold").append(f"  {https.host}: {https_line(https)}", "not bold"), soft_wrap=True)
    for caps in chains:
        links = (f"{cap.name} {cap.value:,} ({cap.source})" for cap in caps)
        console.print(Text("caps", "bold").append("  " + " -> ".join(links), "not bold"))
    console.print()
    for one in findings:
        head = Text(f"{one.severity} {one.id}", _COLOURS[one.severity])
        head.append(f"  {', '.join(one.paths)}" if one.paths else "", "not bold default")
        console.print(head)
        told = Table.grid(padding=(0, 1))
        for name, sentence in (("cause", one.cause), ("cure", one.cure), ("more", one.docs)):
            told.add_row(Text(name, "dim"), Text(sentence))
        console.print(Padding(told, (0, 0, 0, 2), expand=False))
    word, colour = _SUMMARY[exit_status(findings)]
    console.print(Text(word, colour))


def as_json(paths: Sequence[PathSeen], chains: Sequence[Sequence[Cap]], findings: Sequence[Finding]) -> dict[str, Any]:
    """Return the same for machines."""
    return {
        "status": exit_status(findings),
        "libpq": psycopg.pq.version(),
        "paths": [_path_as_json(path) for path in paths],
        "https": [{**asdict(https), "detail": https_line(https)} for https in _beside(paths)],
        "caps": [[asdict(cap) for cap in caps] for caps in chains],
        "findings": [{**asdict(one), "docs": one.docs} for one in findings],
    }


def _path_as_json(path: PathSeen) -> dict[str, Any]:
    endpoint = path.endpoint
    return {
        "name": endpoint.name,
        "role": endpoint.role,
        "pooled": endpoint.pooled,
        "user": endpoint.user,
        "host": endpoint.host,
        "port": endpoint.port,
        "dbname": endpoint.dbname,
        "addresses": list(path.addresses),
        "session": None if path.session is None else asdict(path.session),
        "steps": [
            {"name": name, "good": good, "detail": detail, "seconds": path.seconds.get(name)}
            for good, name, detail in _steps(path)
        ],
    }


def _beside(paths: Sequence[PathSeen]) -> list[HttpsSeen]:
    """Return what was seen of the ports for HTTPS that are not the way itself, once each."""
    return list(dict.fromkeys(path.https for path in paths if path.https is not None and path.endpoint.transport == "tcp"))


def _steps(path: PathSeen) -> Iterator[tuple[bool, str, str]]:
    """Yield each step that was made: whether it went well, its name, and what was seen."""
    if path.endpoint.transport == "websocket":
        if path.https is not None:
            yield path.https.websocket or path.https.is_opaque, "HTTPS", https_line(path.https)
    else:
        yield not path.dns_error, "name", path.dns_error or _addresses(path.addresses)
        if "port" not in path.seconds:
            return
        yield not path.port_error, "port", path.port_error or "open"
    if path.tls is not None:
        yield not path.tls.fault, "TLS", _tls(path.tls, path.endpoint.sslmode)
    if path.refusal is not None and path.session is None:
        yield False, "server" if "server" in path.seconds else "login", said(path.refusal)
    elif path.session is not None:
        yield True, "login", f"as {path.session.role}"
        yield True, "server", _server(path.session)
        yield True, "limits", _limits(path.session, path.endpoint)
        if path.session.pooler is not None:
            yield True, "pooler", _pooler(path.session)


def _addresses(addresses: Sequence[str]) -> str:
    return f"{', '.join(addresses)} ({', '.join(dict.fromkeys(map(kind_of, addresses)))})"


def https_line(seen: HttpsSeen) -> str:
    """Return how far the way to the WebSocket leads."""
    if seen.is_opaque:
        return f"through the proxy {seen.proxy}, which is not looked through"
    if seen.dns_error:
        return seen.dns_error
    way = f"{f'through the proxy {seen.proxy}' if seen.proxy else _addresses(seen.addresses)}, port {seen.port}"
    if seen.port_error or seen.proxy_error:
        return f"{way}, {seen.port_error or seen.proxy_error}"
    if seen.tls is None:
        return f"{way}, not asked"
    words = [way, "open", seen.tls.protocol, seen.tls.reason]
    if seen.websocket:
        words.append("/v2 opens a WebSocket")
    elif seen.answer:
        words.append(f"/v2 opens no WebSocket: {seen.answer}")
    return ", ".join(filter(None, words))


def _tls(tls: TlsSeen, mode: str) -> str:
    if not tls.offered:
        return f"not offered; sslmode={mode}"
    words = [tls.protocol, f"sslmode={mode}", tls.reason, "direct negotiation possible" if tls.direct else ""]
    return ", ".join(filter(None, words))


def _server(session: SessionSeen) -> str:
    words = [
        f"PostgreSQL {session.version // 10000}.{session.version % 10000}",
        "replica" if session.in_recovery else "primary",
        "read-only" if session.read_only else "",
        "through a pooler" if session.behind_pooler else "direct",
        f"round trip {session.round_trip * 1000:.1f} ms",
        "" if session.lag is None else f"lag {session.lag:.1f} s",
        "" if abs(session.clock_ahead) < 1 else f"clock {session.clock_ahead:+.0f} s",
    ]
    return ", ".join(filter(None, words))


def _limits(session: SessionSeen, endpoint: Endpoint) -> str:
    """Return our timeouts beside those that the role has by itself."""
    ours = {field: getattr(endpoint.timeouts, field) for field in (*TIMEOUTS.values(), "lock")}
    theirs = {field: session.timeouts.get(setting, 0) / 1000 for setting, field in TIMEOUTS.items()}
    return f"ours: {_durations(ours)}; the role's: {_durations(theirs)}"


def _durations(seconds: Mapping[str, float | None]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value:g} s" for name, value in seconds.items() if value) or "none"


def _pooler(session: SessionSeen) -> str:
    pooler = session.pooler
    assert pooler is not None
    told = {True: "yes", False: "no", None: "unknown"}
    return (
        f"by transaction: {told[pooler.shares]}, prepared statements: {told[pooler.prepares]},"
        f" startup options: {pooler.options or 'unknown'}"
    )
