"""SQLAlchemy's plugin for pytest; it has to come before anything of `sqlalchemy.testing`."""

from typing import Any

import pytest

pytest.register_assert_rewrite("sqlalchemy.testing.assertions")

from sqlalchemy.testing.plugin.pytestplugin import *  # noqa: E402, F403
from sqlalchemy.testing.plugin.pytestplugin import pytest_sessionstart as _sessionstart  # noqa: E402


def pytest_sessionstart(session: pytest.Session) -> None:  # type: ignore[no-redef]
    """Make both dialects ready for the lab: no prepared statements behind a pooler, and no extensions that it does not have."""
    from sqlalchemy import Engine, event
    from sqlalchemy.dialects.postgresql import provision

    @event.listens_for(Engine, "do_connect")
    def unprepared(dialect: Any, record: Any, cargs: Any, cparams: dict[str, Any]) -> None:
        cparams["prepare_threshold"] = None

    provision._extensions = []  # citext and hstore: the wheel of PostgreSQL has no contrib modules
    _sessionstart(session)  # type: ignore[no-untyped-call]
