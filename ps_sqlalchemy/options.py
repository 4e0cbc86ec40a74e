"""The options of `create_engine` and `create_async_engine`: what type checkers know, and what is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal

import sqlalchemy as sa
from sqlalchemy.engine.create import _pool_translate_kwargs
from sqlalchemy.util import get_cls_kwargs

from ps_core._names import nearest, no_such
from ps_core.errors import ConfigurationError, UnknownSetting
from ps_core.topology import TopologySettings

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from sqlalchemy.pool import Pool
    from sqlalchemy.pool.base import ResetStyle

__all__ = ["SETTINGS", "SIDES", "EngineOptions", "check_options", "options_of"]

SETTINGS: Final = frozenset(TopologySettings.__annotations__)
SIDES: Final = ("replica_", "direct_")
"""What is put before an option that is for one side alone."""
# What sqlalchemy.create_engine takes itself, beside what it hands to the dialect, the pool and the engine.
_OF_FACTORY = frozenset(
    {"connect_args", "empty_in_strategy", "enable_from_linting", "future", "plugins", "poolclass"}
    | {"_coerce_config", "_initialize", "_is_async"}
)
_CONNECTS = frozenset({"creator", "async_creator", "module", "pool"})
# What it, or we, fill in.
_FILLED_IN = frozenset({*_CONNECTS, "_dispatch", "dbapi", "dialect", "ps_policy", "ps_sides", "ps_to", "ps_topology", "url"})


class EngineOptions(TopologySettings, total=False):
    """The topology's settings, and `sqlalchemy.create_engine`'s options; with `replica_` or `direct_`, those of one side alone.

    For the replicas are those that do not belong to the dialect or the cache of statements, which they share with the primary.
    """

    # of all endpoints
    client_encoding: str | None
    connect_args: dict[str, Any]
    echo: bool | Literal["debug"] | None
    echo_pool: bool | Literal["debug"] | None
    enable_from_linting: bool
    execution_options: Mapping[str, Any]
    future: Literal[True]
    hide_parameters: bool
    insertmanyvalues_page_size: int
    isolation_level: str | None
    json_deserializer: Callable[[str], Any] | None
    json_serializer: Callable[[Any], str] | None
    label_length: int | None
    logging_name: str | None
    max_identifier_length: int | None
    max_overflow: int
    native_inet_types: bool | None
    paramstyle: str
    plugins: list[str]
    pool_logging_name: str | None
    pool_pre_ping: bool
    pool_recycle: int
    pool_reset_on_return: ResetStyle | Literal["rollback", "commit"] | bool | None
    pool_size: int
    pool_timeout: float
    pool_use_lifo: bool
    poolclass: type[Pool] | None
    query_cache_size: int
    server_side_cursors: bool
    skip_autocommit_rollback: bool
    use_insertmanyvalues: bool
    use_native_hstore: bool
    # of the replicas
    replica_connect_args: dict[str, Any]
    replica_echo: bool | Literal["debug"] | None
    replica_echo_pool: bool | Literal["debug"] | None
    replica_execution_options: Mapping[str, Any]
    replica_hide_parameters: bool
    replica_isolation_level: str | None
    replica_logging_name: str | None
    replica_max_overflow: int
    replica_plugins: list[str]
    replica_pool_logging_name: str | None
    replica_pool_pre_ping: bool
    replica_pool_recycle: int
    replica_pool_reset_on_return: ResetStyle | Literal["rollback", "commit"] | bool | None
    replica_pool_size: int
    replica_pool_timeout: float
    replica_pool_use_lifo: bool
    replica_poolclass: type[Pool] | None
    # of the direct endpoint
    direct_client_encoding: str | None
    direct_connect_args: dict[str, Any]
    direct_echo: bool | Literal["debug"] | None
    direct_echo_pool: bool | Literal["debug"] | None
    direct_enable_from_linting: bool
    direct_execution_options: Mapping[str, Any]
    direct_future: Literal[True]
    direct_hide_parameters: bool
    direct_insertmanyvalues_page_size: int
    direct_isolation_level: str | None
    direct_json_deserializer: Callable[[str], Any] | None
    direct_json_serializer: Callable[[Any], str] | None
    direct_label_length: int | None
    direct_logging_name: str | None
    direct_max_identifier_length: int | None
    direct_max_overflow: int
    direct_native_inet_types: bool | None
    direct_paramstyle: str
    direct_plugins: list[str]
    direct_pool_logging_name: str | None
    direct_pool_pre_ping: bool
    direct_pool_recycle: int
    direct_pool_reset_on_return: ResetStyle | Literal["rollback", "commit"] | bool | None
    direct_pool_size: int
    direct_pool_timeout: float
    direct_pool_use_lifo: bool
    direct_poolclass: type[Pool] | None
    direct_query_cache_size: int
    direct_server_side_cursors: bool
    direct_skip_autocommit_rollback: bool
    direct_use_insertmanyvalues: bool
    direct_use_native_hstore: bool


def check_options(options: Mapping[str, Any], sides: Mapping[str, Mapping[str, Any]], drivername: str) -> None:
    """Refuse each option that SQLAlchemy would not take: it would say so late, or, for a side that does not exist, never.

    `options` hold for all endpoints, those of `sides` (without their prefix) for one.

    Raises:
        UnknownSetting: there is no such option, or the pool class takes none of that name.
        ConfigurationError: the option says how to connect, or cannot be another one for the replicas.
    """
    dialect: Any = sa.URL.create(drivername).get_dialect()
    usual = dialect.get_pool_class(sa.URL.create(drivername))
    known = _options_of(dialect, usual)
    names = ["retry", *SETTINGS, *known, *(side + name for side in SIDES for name in known)]
    of_all = options.get("poolclass") or usual
    shared = _shared_by_replicas(dialect)
    for side, given in (("", options), *sides.items()):
        poolclass = given.get("poolclass") or of_all
        taken = _options_of(dialect, poolclass)
        for name in given:
            if side == "replica_" and name in shared:
                raise ConfigurationError(f"replica_{name}: replicas share it with the primary: write {name}, for all endpoints")
            if name in taken:
                continue
            if name in _CONNECTS:
                raise ConfigurationError(
                    f"{side}{name}: the topology says how to connect: write the URL's parameters, {side}connect_args,"
                    f" {side}poolclass or {side}pool_size"
                )
            if name in known:
                raise UnknownSetting(
                    f"{side}{name}: {poolclass.__name__} has no such option: leave it out, or write another poolclass"
                )
            # A plugin may take any other one. What none takes, SQLAlchemy refuses.
            if ("plugins" in options or "plugins" in given) and nearest(side + name, SETTINGS, cutoff=0.85) is None:
                continue
            raise no_such(
                "option",
                side + name,
                names,
                otherwise="write a setting of ps_core.topology.TopologySettings, or an option of sqlalchemy.create_engine",
            )


def options_of(drivername: str, poolclass: type) -> Collection[str]:
    """Return the options that `sqlalchemy.create_engine` takes with this pool class."""
    dialect: Any = sa.URL.create(drivername).get_dialect()
    return _options_of(dialect, poolclass)


def _options_of(dialect: type, poolclass: type) -> Collection[str]:
    """Return the keywords of `sqlalchemy.create_engine` with this dialect and pool, as it finds them itself."""
    of_pool = (_pool_translate_kwargs.get(name, name) for name in get_cls_kwargs(poolclass))
    return {*_OF_FACTORY, *get_cls_kwargs(dialect), *of_pool, *get_cls_kwargs(sa.Engine)} - _FILLED_IN


def _shared_by_replicas(dialect: type) -> Collection[str]:
    """Return the options of what the replicas' engine has from the primary's: its dialect, and its cache of statements."""
    return {*get_cls_kwargs(dialect), "enable_from_linting", "query_cache_size"} - {"isolation_level"}
