"""Every private name of SQLAlchemy that is used here, with its signature: a release that changes one tells at once."""

import ast
import inspect
import tomllib
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import orm, pool
from sqlalchemy.dialects.postgresql.base import PGExecutionContext
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg, PGDialectAsync_psycopg, PsycopgAdaptDBAPI
from sqlalchemy.engine.base import OptionEngine
from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy.event.base import _Dispatch, _JoinedDispatcher
from sqlalchemy.orm.session import SessionTransaction
from sqlalchemy.sql.cache_key import HasCacheKey

import ps_sqlalchemy

pytestmark = pytest.mark.fast

SIGNATURES: dict[str, tuple[Any, str]] = {
    # What sessions route.
    "Session._execute_internal": (
        orm.Session._execute_internal,
        "(self, statement, params=None, *, execution_options={}, bind_arguments=None, _parent_execute_state=None,"
        " _add_event=None, _scalar_result=False)",
    ),
    "Session._autobegin_t": (orm.Session._autobegin_t, "(self, begin=False)"),
    "Session._merge": (
        orm.Session._merge,
        "(self, state, state_dict, *, options=None, load, _recursive, _resolve_conflict_map)",
    ),
    "HasCacheKey._generate_cache_key": (HasCacheKey._generate_cache_key, "(self)"),
    # What pools do.
    "QueuePool._do_get": (pool.QueuePool._do_get, "(self)"),
    "Pool._invalidate": (pool.Pool._invalidate, "(self, connection, exception=None, _checkin=True)"),
    "Pool._creator": (pool.Pool._creator, ""),
    # How a dialect connects.
    "PGDialect_psycopg._do_autocommit": (PGDialect_psycopg._do_autocommit, "(self, connection, value)"),
    "PGDialect_psycopg._type_info_fetch": (PGDialect_psycopg._type_info_fetch, "(self, connection, name)"),
    "DefaultDialect._set_connection_characteristics": (
        DefaultDialect._set_connection_characteristics,
        "(self, connection, characteristics)",
    ),
    "PsycopgAdaptDBAPI.connect": (PsycopgAdaptDBAPI.connect, "(self, *arg, **kw)"),
    "PGExecutionContext._execute_scalar": (PGExecutionContext._execute_scalar, "(self, stmt, type_, parameters=None)"),
    # Who hears what.
    "_Dispatch._join": (_Dispatch._join, "(self, other)"),
    "_Dispatch._update": (_Dispatch._update, "(self, other, only_propagate=True)"),
    "_JoinedDispatcher.__init__": (_JoinedDispatcher.__init__, "(self, local, parent)"),
    "OptionEngine.__init__": (OptionEngine.__init__, "(self, proxied, execution_options)"),
}
READ = {
    "engine": ("_compiled_cache", "_execution_options", "_has_events", "_option_cls"),
    "option": ("_proxied",),
    "dialect": (
        *("_backslash_escapes", "_has_events", "_has_native_hstore", "_on_connect_isolation_level", "_psycopg_adapters_map"),
        "_supports_drop_index_concurrently",
    ),
    "pool": ("_creator", "_dialect", "_invoke_creator", "_max_overflow", "_timeout"),
    "session": ("_flushing", "_transaction"),
    "select": ("_for_update_arg",),
    "listener": ("parent_listeners",),
}
"""What is read or set of an object."""
ELSEWHERE = {"_attributes", "_begin", "_is_asyncio", "_events", "_connection", "_sa_propagate_class_events"}
"""Names of classes that are ours as well."""
NAMES = {name.partition(".")[2] for name in SIGNATURES} | {name for names in READ.values() for name in names} | ELSEWHERE


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures(name: str) -> None:
    """Each is where it is looked for, and takes what it is given."""
    found, expected = SIGNATURES[name]
    if not expected:
        assert isinstance(found, property)
        return
    signature = inspect.signature(found)
    plain = [
        parameter.replace(
            annotation=inspect.Parameter.empty,
            default={} if name.endswith("_execute_internal") and parameter.name == "execution_options" else parameter.default,
        )
        for parameter in signature.parameters.values()
    ]
    assert str(signature.replace(parameters=plain, return_annotation=inspect.Signature.empty)) == expected


def test_attributes() -> None:
    """Each is there on what SQLAlchemy makes."""
    engine: Any = sa.create_engine("postgresql+psycopg://app@host/db")
    found = {
        "engine": engine,
        "option": engine.execution_options(),
        "dialect": engine.dialect,
        "pool": engine.pool,
        "session": orm.Session(engine),
        "select": sa.select(1),
        "listener": engine.execution_options().dispatch.before_execute,
    }
    for what, one in found.items():
        assert [name for name in READ[what] if not hasattr(one, name)] == []


def test_what_connects() -> None:
    """What `create_engine` gives to a pool closes over the dialect and the parameters, which nobody else shows."""
    engine: Any = sa.create_engine("postgresql+psycopg://app@host/db", connect_args={"application_name": "a"})
    creator = engine.pool._creator
    assert creator.__module__ == "sqlalchemy.engine.create"
    made = inspect.getclosurevars(creator).nonlocals
    assert made["dialect"] is engine.dialect
    assert made["cparams"]["application_name"] == "a"
    assert made["cparams"]["user"] == "app"


def sqlalchemys_own() -> set[str]:
    """The private names of the classes that are used here."""
    found: set[str] = set()
    dialects = (PGDialect_psycopg, PGDialectAsync_psycopg)
    classes = (sa.Engine, OptionEngine, sa.Connection, pool.QueuePool, *dialects, orm.Session, SessionTransaction, sa.Select)
    for cls in (*classes, _JoinedDispatcher, _Dispatch):
        for base in cls.__mro__[:-1]:
            found |= set(vars(base)) | set(inspect.get_annotations(base))
    return {name for name in found if name.startswith("_") and not name.startswith("__")}


def test_no_other_is_used() -> None:
    """The list is whole."""
    own, used = sqlalchemys_own(), set()
    for file in Path(ps_sqlalchemy.__file__ or "").parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Attribute) and node.attr in own and not node.attr.startswith("_ps_"):
                used.add(node.attr)
    assert used <= NAMES


def test_bounds() -> None:
    """SQLAlchemy is bounded below the minor release that nobody has seen."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert "SQLAlchemy[asyncio]>=2.0.40,<2.2" in project["optional-dependencies"]["sqlalchemy"]
