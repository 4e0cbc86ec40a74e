"""Every private name of psycopg that is used here, with its signature: a release that changes one tells at once.

`pyproject.toml` bounds psycopg to the minor releases that are known. A name that is not in the list may not be used.
"""

import ast
import inspect
import re
import tomllib
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg._cursor_base import BaseCursor
from psycopg._pipeline import BasePipeline  # type: ignore[attr-defined] # psycopg imports it there
from psycopg._queries import PostgresClientQuery
from psycopg.adapt import Transformer

import ps_core
import ps_django
import ps_http
import ps_sqlalchemy
from ps_lab import Lab

pytestmark = pytest.mark.fast

OLD = psycopg.__version__.startswith("3.2.")
"""The minor release before template strings."""

OVERRIDDEN = {
    # What opens a transaction, and when.
    "BaseConnection._start_query": "(self)",
    "BaseConnection._get_tx_start_command": "(self)",
    "BaseConnection._exec_command": "(self, command, result_format=Format.TEXT)",
    "BaseConnection._set_read_only_gen": "(self, value)",
    "BaseConnection._check_connection_ok": "(self)",
    "BaseConnection._check_intrans_gen": "(self, attribute)",
    # Connecting, and cancelling.
    "Connection._connect_gen": "(conninfo='', *, timeout=0.0)" if OLD else "(conninfo='')",
    "AsyncConnection._connect_gen": "(conninfo='', *, timeout=0.0)" if OLD else "(conninfo='')",
    "Connection._try_cancel": "(self, *, timeout=5.0)",
    "AsyncConnection._try_cancel": "(self, *, timeout=5.0)",
    # How a statement travels.
    "BaseCursor._execute_gen": "(self, query, params=None, *, prepare=None, binary=None)",
    "BaseCursor._executemany_gen_pipeline": "(self, query, params_seq, returning)",
    "BaseCursor._stream_send_gen": "(self, query, params=None, *, binary=None, size)",
    "BaseCursor._start_copy_gen": "(self, statement, params=None)",
    "BaseCursor._convert_query": "(self, query, params=None)",
    "BaseCursor._execute_send": "(self, query, *, force_extended=False, binary=None)",
    "ServerCursor._declare_gen": "(self, query, params=None, binary=None)",
    "AsyncServerCursor._declare_gen": "(self, query, params=None, binary=None)",
    **(
        {"Connection._pipeline_nolock": "(self)", "AsyncConnection._pipeline_nolock": "(self)"}
        if hasattr(psycopg.Connection, "_pipeline_nolock")
        else {}
    ),
    "BasePipeline._enqueue_sync": "(self)",
    "ServerCursor._fetch_gen": "(self, num)",
    "AsyncServerCursor._fetch_gen": "(self, num)",
    # Whether a statement is prepared.
    "BaseCursor._maybe_prepare_gen": "(self, pgq, *, prepare=None, binary=None)",
    # What parameters become.
    "PostgresClientQuery.dump": "(self, vars)",
    **({} if OLD else {"PostgresClientQuery._convert_template": "(self, query, vars)"}),
}
"""Methods of psycopg's in whose place ours stand; each has a body that calls it, or replaces it whole."""

CALLED = {
    "BaseConnection._notice_handler": "(wself, res)",
    "BaseConnection._notify_handler": "(wself, pgn)",
    "BaseConnection._set_autocommit_gen": "(self, value)",
    "BaseCursor._check_results": "(self, results)",
    "BaseCursor._set_results": "(self, results)",
    "BaseCursor._check_copy_result": "(self, result)",
    "BaseCursor._start_query": "(self, query=None)",
    "BaseCursor._reset": "(self, reset_query=True)",
    "BasePipeline._communicate_gen": "(self)",
    "Copy._read_gen": "(self)",
    "ClientCursor._execute_send": "(self, query, *, force_extended=False, binary=None)",
    "PostgresClientQuery.validate_and_reorder_params": "(parts, vars, order)",
    "Transformer.get_dumper": None,
}
"""Methods that are called; None: C, which has no signature."""

READ = {
    "connection": (
        *(
            "_autocommit",
            "_closed",
            "_deferrable",
            "_isolation_level",
            "_num_transactions",
            "_pipeline",
            "_prepared",
            "_read_only",
        ),
        "_tpc",
    ),
    "pgconn": ("_encoding",),
    "cursor": (
        *("_conn", "_encoding", "_execmany_returning", "_last_query", "_pgconn", "_query", "_query_cls", "_results", "_rowcount"),
        *("_closed", "_tx"),
    ),
    "copy": ("_finished", "_pgconn"),
    "named cursor": ("_withhold",),
    "query": ("_order", "_parts", "_tx", "template"),
}
"""What is read or set of an object."""

OF_LATER_RELEASES = {"_pipeline_nolock"}
"""Not there yet in 3.2.1."""

OF_TEMPLATES = {"_chunks", "_convert_template", "_process_client_variable"}
"""Names for template strings: there from psycopg 3.3 on."""

NAMES = {name.partition(".")[2] for name in (*OVERRIDDEN, *CALLED)} | {name for names in READ.values() for name in names}

MODULES = {
    "psycopg._pipeline.BasePipeline",
    *("psycopg._cursor_base.BaseCursor", "psycopg._queries.PostgresClientQuery", "psycopg._queries.PostgresQuery"),
    "psycopg._tstrings.TemplateProcessor",
}
"""What is imported from private modules. The last is there from psycopg 3.3 on."""

CLASSES: dict[str, Any] = {
    "BaseConnection": psycopg.BaseConnection,
    "BaseCursor": BaseCursor,
    "BasePipeline": BasePipeline,
    "PostgresClientQuery": PostgresClientQuery,
    "Transformer": Transformer,
}


@pytest.mark.parametrize("name", [*OVERRIDDEN, *CALLED])
def test_signatures(name: str) -> None:
    """Each is where it is looked for, and takes what it is given."""
    owner, _, method = name.partition(".")
    found = getattr(CLASSES.get(owner) or getattr(psycopg, owner), method)
    expected = {**OVERRIDDEN, **CALLED}[name]
    if expected is None:
        return
    signature = inspect.signature(found)
    plain = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in signature.parameters.values()]
    shown = str(signature.replace(parameters=plain, return_annotation=inspect.Signature.empty))
    assert shown.replace("<Format.TEXT: 0>", "Format.TEXT") == expected


def test_attributes(ps_lab: Lab) -> None:
    """Each is there on what psycopg makes."""
    with (
        psycopg.connect(**ps_core.conninfo(ps_lab.topology.direct), cursor_factory=psycopg.ClientCursor) as conn,
        conn.cursor() as cursor,
        conn.cursor("named") as named,
    ):
        cursor.execute("select %s", [1])
        query = PostgresClientQuery(Transformer(conn))
        query.convert("select %s", [1])
        with conn.cursor().copy("copy (select 1) to stdout") as copy:
            found = {
                "connection": conn,
                "pgconn": conn.pgconn,
                "cursor": cursor,
                "query": query,
                "named cursor": named,
                "copy": copy,
            }
            assert [(what, name) for what, names in READ.items() for name in names if not hasattr(found[what], name)] == []
            assert list(copy) == [b"1\n"]


def psycopgs_own() -> set[str]:
    """The private names that psycopg's classes have."""
    found = set(dir(psycopg.pq.PGconn)) | {"_encoding"}
    for cls in (*CLASSES.values(), psycopg.Connection, psycopg.AsyncConnection, psycopg.ClientCursor, psycopg.AsyncClientCursor,
                psycopg.ServerCursor, psycopg.AsyncServerCursor, psycopg.Transaction, psycopg.Copy):  # fmt: skip
        for base in cls.__mro__[:-1]:
            found |= set(vars(base)) | set(getattr(base, "__annotations__", ()))
            slots = getattr(base, "__slots__", ())
            found |= set(slots.split() if isinstance(slots, str) else slots)
    for module in (psycopg._connection_base, psycopg._cursor_base, psycopg._queries):  # what constructors set
        found |= set(re.findall(r"self\.(_[a-z]\w*)", inspect.getsource(module)))
    return {name for name in found if name.startswith("_") and not name.startswith("__")}


def test_no_other_is_used() -> None:
    """The list is whole."""
    own, used = psycopgs_own(), set()
    for package in (ps_core, ps_http, ps_sqlalchemy, ps_django):
        for file in Path(package.__file__ or "").parent.rglob("*.py"):
            tree = ast.parse(file.read_text())
            defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
            for node in ast.walk(tree):
                match node:
                    case ast.Attribute(attr=name) if name in own and (package is ps_core or name not in defined):
                        used.add(name)
                    case ast.ImportFrom(module=str(module)) if module.startswith("psycopg._"):
                        used.update(f"{module}.{alias.name}" for alias in node.names)
    used -= {"_pool", "_enter"}  # also names of our own
    assert used <= NAMES | MODULES | OF_TEMPLATES
    assert {name for name in used if name.startswith("psycopg.")} == MODULES


def test_overridden_names_are_those_that_are_defined() -> None:
    """What our classes define under a name of psycopg's is in the list, too."""
    from ps_core import AsyncConnection, Connection
    from ps_core._connection.asyncio import AsyncPipeline
    from ps_core._connection.cursors import (
        AsyncCursor,
        AsyncServerBindingCursor,
        AsyncServerCursor,
        Cursor,
        ServerBindingCursor,
        ServerCursor,
    )
    from ps_core._connection.literals import TypedQuery
    from ps_core._connection.sync import Pipeline

    own, listed = psycopgs_own(), {name.partition(".")[2] for name in OVERRIDDEN}
    defined: set[str] = set()
    for cls in (Connection, AsyncConnection, Cursor, AsyncCursor, ServerBindingCursor, AsyncServerBindingCursor, ServerCursor,
                AsyncServerCursor, TypedQuery, Pipeline, AsyncPipeline):  # fmt: skip
        for base in cls.__mro__:
            if base.__module__.startswith("ps_"):
                defined |= {name for name, what in vars(base).items() if name in own and not inspect.ismemberdescriptor(what)}
    assert defined - listed - OF_TEMPLATES - OF_LATER_RELEASES == {"_query_cls"}
    assert listed - defined == {"dump"}


async def test_what_is_kept_has_slots(ps_lab: Lab) -> None:
    """Nothing of a connection or a cursor is kept by name, where Python would take ten times as long to find it."""
    direct = ps_lab.topology.direct
    with ps_core.connect(direct) as conn, conn.execute("select %s", [1]) as cursor:
        assert (vars(conn), vars(cursor)) == ({}, {})
    async with await ps_core.connect_async(direct) as later, await later.execute("select %s", [1]) as found:
        assert (vars(later), vars(found)) == ({}, {})


def test_bounds() -> None:
    """psycopg is bounded below the minor release that nobody has seen."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert "psycopg>=3.2,<3.4" in project["dependencies"]
    assert psycopg.__version__.startswith(("3.2.", "3.3."))
