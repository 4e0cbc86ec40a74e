"""SQLAlchemy's plugin for pytest; it has to come before anything of `sqlalchemy.testing`."""

import re
from typing import Any

import pytest

from tests.suites.sqlalchemy.differences import LACKING

pytest.register_assert_rewrite("sqlalchemy.testing.assertions")

from sqlalchemy.dialects import registry  # noqa: E402
from sqlalchemy.dialects.postgresql.psycopg import PGExecutionContext_psycopg  # noqa: E402
from sqlalchemy.testing.plugin.pytestplugin import *  # noqa: E402, F403
from sqlalchemy.testing.plugin.pytestplugin import pytest_collection_modifyitems as _collected  # noqa: E402
from sqlalchemy.testing.plugin.pytestplugin import pytest_sessionstart as _sessionstart  # noqa: E402

from ps_sqlalchemy.http import PSDialectHttp  # noqa: E402


class Writing(PSDialectHttp):
    """`postgresql+ps_http` that writes, too, each statement committed by itself: else the tests had no tables to read."""

    supports_statement_cache = True
    execution_ctx_cls: Any = PGExecutionContext_psycopg

    def connect(self, *cargs: Any, **cparams: Any) -> Any:
        connection = super().connect(*cargs, **cparams)
        connection.autocommit = True
        return connection

    def get_isolation_level_values(self, dbapi_connection: Any) -> Any:
        """Return those that are not refused: the suite takes any one of them."""
        levels = super().get_isolation_level_values(dbapi_connection)
        return [level for level in levels if level not in {"REPEATABLE READ", "SERIALIZABLE"}]

    def do_savepoint(self, connection: Any, name: str) -> None:  # type: ignore[override]
        """Do nothing, as the two others: the suite puts one around each DELETE of what a test has left."""

    do_rollback_to_savepoint = do_release_savepoint = do_savepoint


registry.register("postgresql.ps_http_writing", __name__, "Writing")


def pytest_sessionstart(session: pytest.Session) -> None:  # type: ignore[no-redef]
    """Make both dialects ready for the lab: no prepared statements behind a pooler, and no extensions that it does not have."""
    from sqlalchemy import Engine, event
    from sqlalchemy.dialects.postgresql import provision

    @event.listens_for(Engine, "do_connect")
    def unprepared(dialect: Any, record: Any, cargs: Any, cparams: dict[str, Any]) -> None:
        # Not where a test has a mock of another driver, and looks at what that is called with.
        if getattr(dialect, "driver", "") in {"psycopg", "psycopg_async"}:
            cparams["prepare_threshold"] = None

    provision._extensions = []  # citext and hstore: the wheel of PostgreSQL has no contrib modules
    _sessionstart(session)  # type: ignore[no-untyped-call]


def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:  # type: ignore[no-redef]
    """Leave out, for all dialects, what the lab's PostgreSQL cannot do."""
    _collected(session, config, items)  # type: ignore[no-untyped-call]
    for item in items:
        for pattern, what in LACKING.items():
            if re.search(pattern, item.nodeid):
                item.add_marker(pytest.mark.skip(reason=f"the lab's PostgreSQL has no {what}"))
