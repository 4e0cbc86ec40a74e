"""The dialects `postgresql+ps` and `postgresql+ps_async`: SQLAlchemy's psycopg dialect over ps_core's connections.

Only the way to a DBAPI connection differs. `name` and `driver` stay "postgresql" and "psycopg": applications compare them.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg, PGDialectAsync_psycopg

from ps_core.connection import AsyncConnection, Connection
from ps_core.link import Link, link_to
from ps_core.topology import Topology

if TYPE_CHECKING:
    from sqlalchemy import URL

__all__ = ["PSDialect", "PSDialectAsync"]


class PSDialect(PGDialect_psycopg):
    """SQLAlchemy's `postgresql+psycopg` whose connections open, bound and heal their transactions."""

    supports_statement_cache = True

    def __init__(self, ps_link: Link | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)  # type: ignore[no-untyped-call]
        self.ps_link = ps_link
        """The endpoint that connections go to; None until the URL is seen."""

    @classmethod
    def get_async_dialect_cls(cls, url: URL) -> type[PSDialectAsync]:
        return PSDialectAsync

    def create_connect_args(self, url: URL) -> Any:
        # The link says where to connect. What stays here are the options that are psycopg's own (adapters, client_encoding).
        if self.ps_link is None:
            topology = Topology.from_url(url.render_as_string(hide_password=False))
            self.ps_link = link_to(topology.primary)
        nowhere = url.set(username=None, password=None, host=None, port=None, database=None, query={})
        return super().create_connect_args(nowhere)  # type: ignore[no-untyped-call]

    def connect(self, *cargs: Any, **cparams: Any) -> Any:
        assert self.ps_link is not None  # create_connect_args comes first
        return Connection.open(self.ps_link, *cargs, **cparams)


class PSDialectAsync(PSDialect, PGDialectAsync_psycopg):
    """The same for asyncio."""

    supports_statement_cache = True

    def connect(self, *cargs: Any, **cparams: Any) -> Any:
        assert self.ps_link is not None
        return self.loaded_dbapi.connect(*cargs, async_creator_fn=partial(AsyncConnection.open, self.ps_link), **cparams)
