"""The options of `create_engine` and `create_async_engine`, for type checkers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from ps_core.topology import TopologySettings

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sqlalchemy.pool import Pool
    from sqlalchemy.pool.base import ResetStyle

__all__ = ["EngineOptions"]


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
