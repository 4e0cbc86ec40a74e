"""What a URL leads to, as SQLAlchemy and libpq take it: several hosts, Unix sockets, a service file, no host, no URL."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
import sqlalchemy as sa
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg

import ps_core
import ps_django
import ps_sqlalchemy
from ps_core.pgbouncer import Load, pgbouncer_ini
from ps_core.topology import Topology

if TYPE_CHECKING:
    from pathlib import Path

    from ps_lab import Lab

WHERE = ("host", "port", "user", "password", "dbname", "service")


@pytest.mark.parametrize(
    "url",
    [
        # SQLAlchemy's own cases (test_dialect.py, MultiHostConnectTest).
        "postgresql+psycopg://USER:PASS@/DB?host=hostA",
        "postgresql+psycopg://USER:PASS@/DB?host=hostA:123",
        "postgresql+psycopg://USER:PASS@/DB?host=192.168.1.50:123",
        "postgresql+psycopg://USER:PASS@/DB?host=hostA:",
        "postgresql+psycopg://USER:PASS@/DB?host=hostA&host=hostB&host=hostC",
        "postgresql+psycopg://USER:PASS@/DB?host=hostA&host=hostB:222&host=hostC",
        "postgresql+psycopg://USER:PASS@/DB?host=hostA:111&host=hostB:222&host=hostC:333",
        "postgresql+psycopg://USER:PASS@/DB?host=hostA:&host=hostB:222&host=hostC:",
        "postgresql+psycopg://USER:PASS@/DB?host=hostA,hostB,hostC&port=111,222,333",
        "postgresql+psycopg://USER:PASS@/DB?host=hostA,hostB,hostC&port=111,,333",
        "postgresql+psycopg://USER:PASS@/DB?host=hostA,hostB,hostC",
        "postgresql+psycopg://USER:PASS@/DB?host=hostA,hostB&port=111,222",
        "postgresql+psycopg://USER:PASS@hostA:111/DB?host=hostB:222",
        # Unix sockets, a service, no host.
        "postgresql+psycopg://USER:PASS@/DB?host=/var/run/postgresql",
        "postgresql+psycopg://USER:PASS@/DB?host=/var/run/postgresql&port=6432",
        "postgresql+psycopg:///DB?service=shop",
        "postgresql+psycopg:///?service=shop",
        "postgresql+psycopg:///DB",
        "postgresql+psycopg://USER@/DB",
        "postgresql+psycopg://USER@:6432/DB",
        "postgresql+psycopg://USER@hostA/DB",
    ],
)
def test_urls(url: str) -> None:
    """Each URL names the same hosts, ports, user and database as with stock; an engine's own URL leads there, too."""
    stock: Any = PGDialect_psycopg().create_connect_args(sa.make_url(url))[1]  # type: ignore[no-untyped-call]

    def named(given: dict[str, Any]) -> dict[str, str]:
        # An empty port in a list is libpq's default, and so is none.
        found = {name: str(given[name]) for name in WHERE if given.get(name)}
        return {name: value for name, value in found.items() if value.strip(",")}

    assert named(Topology.from_url(url).primary.conninfo()) == named(stock)
    engine = ps_sqlalchemy.create_engine(url)
    assert named(Topology.from_url(engine.url.render_as_string(hide_password=False)).primary.conninfo()) == named(stock)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://USER:PASS@/DB?host=hostA:111&host=hostB:vvv",
        "postgresql+psycopg://USER:PASS@/DB?host=hostA,hostB&port=111,vvv",
        "postgresql+psycopg://USER:PASS@/DB?host=hostA,hostB,hostC&port=111,222",
        "postgresql+psycopg://USER:PASS@/DB?host=hostA&port=111,222",
        "postgresql+psycopg://USER:PASS@/DB?host=hostA:111&host=hostB:222&port=333",
    ],
)
def test_refused_urls(url: str) -> None:
    """What stock refuses is refused, with what to write."""
    with pytest.raises(sa.exc.ArgumentError):
        PGDialect_psycopg().create_connect_args(sa.make_url(url))  # type: ignore[no-untyped-call]
    with pytest.raises(ps_core.ConfigurationError, match="write"):
        ps_sqlalchemy.create_engine(url)


@pytest.mark.parametrize("make", [ps_sqlalchemy.create_engine, ps_sqlalchemy.create_async_engine, ps_core.connect])
def test_no_url(make: Any) -> None:
    """A variable that is not set, as in create_engine(os.environ.get("DATABASE_URL")), is told by its effect."""
    with pytest.raises(ps_core.ConfigurationError, match="the connection string is None: write postgresql://"):
        make(None)


def test_ports_apart_are_one_path() -> None:
    """Settings that would name another port of these hosts are refused; Django has one port."""
    url = "postgresql://u@h1:1,h2:2/db"
    with pytest.raises(ps_core.ConfigurationError, match="write the other one as ps_direct_url"):
        Topology.from_url(url, direct_port=5)
    with pytest.raises(ps_core.ConfigurationError, match="PORT is one for all hosts"):
        ps_django.databases(url)
    with pytest.raises(ps_core.ConfigurationError, match="PgBouncer takes one port"):
        pgbouncer_ini(Topology.from_url(url), Load(workers=1, pool_size=1), auth_file="users")


def test_the_first_host_that_answers(ps_lab: Lab) -> None:
    """Several hosts: the next one is taken where one does not answer; libpq does it, for stock and ours."""
    place = ps_lab.topology.primary
    login = f"{place.user.replace('|', '%7C')}:{place.password}"
    url = f"postgresql+psycopg://{login}@/{place.dbname}?host={place.host}:1&host={place.host}:{place.port}"
    for engine in (sa.create_engine(url), ps_sqlalchemy.create_engine(url)):
        with engine.connect() as conn:
            assert conn.scalar(sa.text("select 1")) == 1
        engine.dispose()


def test_service_and_environment(ps_lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service file names the server, and PGHOST and PGPORT do where the URL names none."""
    place = ps_lab.topology.primary
    info = {name: str(place.parameters()[name]) for name in ("host", "port", "user", "password", "dbname")}
    file = tmp_path / "services"
    file.write_text("[shop]\n" + "".join(f"{name}={value}\n" for name, value in info.items()))
    monkeypatch.setenv("PGSERVICEFILE", str(file))
    assert conninfo_to_dict("service=shop") == {"service": "shop"}
    for opened in (psycopg.connect("service=shop"), ps_core.connect("postgresql:///?service=shop")):
        with opened as conn:
            assert (conn.info.host, str(conn.info.port), conn.info.user) == (info["host"], info["port"], info["user"])
    for name, variable in (("host", "PGHOST"), ("port", "PGPORT"), ("user", "PGUSER"), ("password", "PGPASSWORD")):
        monkeypatch.setenv(variable, info[name])
    assert "PGSERVICE" not in os.environ
    for opened in (psycopg.connect("dbname=postgres"), ps_core.connect("postgresql:///postgres")):
        with opened as conn:
            assert (conn.info.host, str(conn.info.port), conn.info.user) == (info["host"], info["port"], info["user"])


def test_unix_socket(ps_lab: Lab) -> None:
    """A directory in place of a host leads to the socket in it."""
    server = ps_lab.topology.direct
    ((sockets,),) = ps_lab.sql("select current_setting('unix_socket_directories')")
    ((port,),) = ps_lab.sql("select current_setting('port')")
    directory = sockets.partition(",")[0].strip()
    assert directory
    url = f"postgresql://{server.user.partition('.')[0]}:{server.password}@/{server.dbname}?host={directory}&port={port}"
    for opened in (psycopg.connect(url), ps_core.connect(url), ps_core.connect(url, to="direct")):
        with opened as conn:
            assert conn.info.host == directory
            assert conn.execute("select 1").fetchone() == (1,)
