"""The options of `create_engine`, by tables: what SQLAlchemy takes is taken, and what nobody takes is refused at once."""

import inspect
import re
from collections.abc import Callable
from typing import Any, get_overloads

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy import pool
from sqlalchemy.engine import CreateEnginePlugin

import ps_sqlalchemy
from ps_core import ConfigurationError, Topology
from ps_core.errors import UnknownSetting
from ps_core.topology import TopologySettings
from ps_sqlalchemy.options import EngineOptions, _options_of, _shared_by_replicas, check_options

pytestmark = pytest.mark.fast

URL = "postgresql://app.branch:s3cret@x.psdb.cloud/d"
REPLICA: dict[str, Any] = {"replica_bouncer": "read-pool"}

both = pytest.mark.parametrize("create", [ps_sqlalchemy.create_engine, ps_sqlalchemy.create_async_engine])


class Plugin(CreateEnginePlugin):
    """One that takes an option."""

    def __init__(self, url: sa.URL, kwargs: dict[str, Any]) -> None:
        super().__init__(url, kwargs)
        kwargs.pop("of_plugin", None)

    def update_url(self, url: sa.URL) -> sa.URL:
        """Change nothing."""
        return url


class Pool(pool.QueuePool):
    """One with an option of its own."""

    def __init__(self, creator: Any, of_pool: int = 0, **kwargs: Any) -> None:
        super().__init__(creator, **kwargs)
        self.of_pool = of_pool


@both
@pytest.mark.parametrize(
    ("options", "message"),
    [
        # neither a setting nor an option
        ({"replica_bouncers": "a"}, "there is no option replica_bouncers: did you mean replica_bouncer?"),
        ({"direct_ulr": "a"}, "there is no option direct_ulr: did you mean direct_url?"),
        ({"statement_timeuot": 1}, "there is no option statement_timeuot: did you mean statement_timeout?"),
        ({"ps_bouncer": "a"}, "there is no option ps_bouncer: did you mean bouncer?"),
        ({"retries": 1}, "there is no option retries: did you mean retry?"),
        ({"pool_sise": 1}, "there is no option pool_sise: did you mean pool_size?"),
        ({"pre_ping": True}, "there is no option pre_ping: did you mean pool_pre_ping?"),
        ({"isolation": "SERIALIZABLE"}, "there is no option isolation: did you mean isolation_level?"),
        ({"xyzzy": 1}, "there is no option xyzzy: write a setting of ps_core.topology.TopologySettings, or an option of sqlalc"),
        ({"ps_state": None}, "there is no option ps_state: did you mean session_state?"),
        # behind a prefix
        ({**REPLICA, "replica_pol_size": 1}, "there is no option replica_pol_size: did you mean replica_pool_size?"),
        ({"direct_poolclas": pool.NullPool}, "there is no option direct_poolclas: did you mean direct_poolclass?"),
        (
            {**REPLICA, "replica_statement_timeout": 1},
            "there is no option replica_statement_timeout: did you mean statement_time",
        ),
        # of a side that there is not
        ({"replica_pool_size": 5}, "replica_pool_size: there are no replicas: write replica_bouncer=..., or leave this out"),
        ({"replica_pool_size": 5, "replica_echo": True}, "replica_pool_size, replica_echo: there are no replicas"),
        # of what the replicas share
        (
            {**REPLICA, "replica_json_serializer": repr},
            "replica_json_serializer: replicas share it with the primary: write json_",
        ),
        ({**REPLICA, "replica_query_cache_size": 1}, "replica_query_cache_size: replicas share it with the primary"),
        # of another pool class
        ({"poolclass": pool.NullPool, "pool_size": 5}, "pool_size: NullPool has no such option: leave it out, or write another"),
        (
            {**REPLICA, "replica_poolclass": pool.NullPool, "replica_max_overflow": 5},
            "replica_max_overflow: NullPool has no such",
        ),
        ({**REPLICA, "poolclass": pool.NullPool, "replica_pool_size": 5}, "replica_pool_size: NullPool has no such option"),
        ({"poolclass": pool.NullPool, "direct_pool_timeout": 5}, "direct_pool_timeout: NullPool has no such option"),
        ({"of_pool": 1}, "there is no option of_pool: "),
        # how to connect
        ({"creator": print}, "creator: the topology says how to connect: write the URL's parameters, connect_args, poolclass or"),
        ({**REPLICA, "replica_pool": 5}, "replica_pool: the topology says how to connect: write the URL's parameters, replica_c"),
        ({"replica_pool": 5}, "replica_pool: the topology says how to connect"),
        (
            {"direct_module": psycopg},
            "direct_module: the topology says how to connect: write the URL's parameters, direct_connec",
        ),
        # a plugin might take it, were it not so near to a setting
        (
            {"plugins": ["xyzzy"], "statement_timeouts": 5},
            "there is no option statement_timeouts: did you mean statement_timeout?",
        ),
    ],
)
def test_refusals(create: Callable[..., Any], options: dict[str, Any], message: str) -> None:
    """An option that nobody takes is refused when the engine is made, with what to write instead."""
    with pytest.raises(ConfigurationError, match=f"^{re.escape(message)}") as caught:
        create(URL, **options)
    # SQLAlchemy's error for an unknown option, which callers catch.
    refused = "how to connect" in message or "no replicas" in message or "share it" in message
    assert isinstance(caught.value, TypeError) is not refused


@both
def test_misspelled_before_the_rest(create: Callable[..., Any]) -> None:
    """A misspelled setting is reported as one, not by what is missing without it."""
    with pytest.raises(UnknownSetting, match=r"did you mean direct_port\?"):
        create("postgresql://app:s3cret@host:7002/d", direct_replica=True, direct_prot=7001, pooled_port=7002)


@both
def test_a_topology_is_complete(create: Callable[..., Any]) -> None:
    """A Topology takes no settings; a misspelled one is refused as such."""
    topology = Topology.from_url(URL)
    with pytest.raises(UnknownSetting, match=r"(?m)^a Topology is complete: give bouncer to Topology\.from_url instead$"):
        create(topology, bouncer="a")
    with pytest.raises(UnknownSetting, match=r"did you mean bouncer\?"):
        create(topology, bouncr="a")


def test_what_sqlalchemy_takes() -> None:
    """What stock declares, and the dialect's options, are taken for all endpoints, and for a side, but for what is shared."""
    [typed, _] = get_overloads(sa.create_engine)
    declared = {name for name, one in inspect.signature(typed).parameters.items() if one.kind is one.KEYWORD_ONLY}
    # It declares one that it takes no longer, and says how to connect by three.
    declared -= {"convert_unicode", "creator", "module", "pool"}
    assert len(declared) >= 28
    declared |= {"client_encoding", "use_native_hstore", "server_side_cursors"}
    given = dict.fromkeys(declared)
    for drivername in ("postgresql+ps", "postgresql+ps_async"):
        shared = _shared_by_replicas(sa.URL.create(drivername).get_dialect())
        of_replicas = {name: value for name, value in given.items() if name not in shared}
        check_options(given, {"replica_": of_replicas, "direct_": given}, drivername)
    assert not declared & TopologySettings.__annotations__.keys()


def test_options_arrive() -> None:
    """Options of one side alone reach its pool, also those of your own pool class; others reach the dialect."""
    of_pool: dict[str, Any] = {"replica_of_pool": 2}
    engine = ps_sqlalchemy.create_engine(
        URL,
        **REPLICA,
        **of_pool,
        json_serializer=repr,
        replica_poolclass=Pool,
        replica_pool_size=3,
        direct_poolclass=pool.NullPool,
    )
    assert engine.dialect._json_serializer is repr
    assert engine.replica is not None
    assert isinstance(engine.replica.pool, Pool)
    assert (engine.replica.pool.of_pool, engine.replica.pool.size()) == (2, 3)
    assert isinstance(engine.direct.pool, pool.NullPool)


@both
def test_plugins(create: Callable[..., Any]) -> None:
    """A plugin takes options that nobody else knows. What none took, SQLAlchemy refuses, as it does."""
    sa.dialects.plugins.register("test_options", __name__, "Plugin")
    create(URL, plugins=["test_options"], of_plugin=1)
    create(URL, **REPLICA, plugins=["test_options"], replica_of_plugin=1)
    create(URL, **REPLICA, replica_plugins=["test_options"], replica_of_plugin=1)
    with pytest.raises(TypeError, match="'xyzzy' sent to create_engine"):
        create(URL, plugins=["test_options"], xyzzy=1)


def test_types() -> None:
    """`EngineOptions` has what is taken, and no more, but for what nobody should write any longer."""
    dialect = sa.URL.create("postgresql+ps").get_dialect()
    taken = set(_options_of(dialect, pool.QueuePool))
    typed = set(EngineOptions.__annotations__) - set(TopologySettings.__annotations__)
    of_all = {name for name in typed if not name.startswith(("replica_", "direct_"))}
    of_replicas = {name.removeprefix("replica_") for name in typed if name.startswith("replica_")}
    assert {name for name in taken - of_all if not name.startswith("_")} == {
        *("compiler_linting", "empty_in_strategy", "implicit_returning", "pool_events", "supports_native_boolean")
    }
    assert of_all - taken <= {"skip_autocommit_rollback"}  # newer than the oldest SQLAlchemy
    assert {name.removeprefix("direct_") for name in typed if name.startswith("direct_")} == of_all
    assert of_replicas == of_all - set(_shared_by_replicas(dialect)) - {"future", "skip_autocommit_rollback"}
