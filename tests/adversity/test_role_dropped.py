"""A role that a connection was SET to is dropped: its session would go on; behind a pooler each transaction asks for it."""

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from django.db import connection
from django.db.utils import ProgrammingError

import ps_sqlalchemy
from ps_core.errors import SessionSettingRefused
from ps_core.failures import classify
from ps_lab import Lab
from tests.adversity.harness import Path, Paths, raised
from tests.adversity.matrix import Matrix

ROLE = "soon_dropped"
REFUSED = rf"'role' was SET for the session, and the server refuses it now: role \"{ROLE}\" does not exist"


@pytest.fixture
def role(ps_lab: Lab) -> Iterator[None]:
    """A role that the application's is a member of."""
    ps_lab.sql(f"CREATE ROLE {ROLE}")
    ps_lab.sql(f"GRANT {ROLE} TO app")
    ps_lab.wait_replicas_caught_up()
    yield
    ps_lab.sql(f"DROP ROLE IF EXISTS {ROLE}")


def drop(lab: Lab) -> None:
    lab.sql(f"DROP ROLE {ROLE}")
    lab.wait_replicas_caught_up()


@pytest.mark.parametrize("path", ["primary", "replica"])
@pytest.mark.parametrize("autocommit", [True, False])
def test_role_dropped(ps_lab: Lab, paths: Paths, matrix: Matrix, role: None, path: Path, autocommit: bool) -> None:
    """The error names what is held, the connection is not replaced, and SET ROLE NONE gets out."""
    conn = paths.ours(path, autocommit=autocommit)
    conn.execute(f"SET ROLE {ROLE}")
    conn.commit()
    drop(ps_lab)
    before = conn.pgconn
    error = raised(conn.execute, "SELECT 1")
    assert isinstance(error, SessionSettingRefused)
    conn.rollback()
    conn.execute("SET ROLE NONE")
    assert conn.execute("SELECT current_user").fetchone() == ("app",)
    assert conn.pgconn is before
    matrix.add(
        "A role that was SET is dropped",
        path,
        "statement under way",
        classify(error),
        "session_setting_refused",
        ours="raised",
        outcome="did not run",
    )


def test_applications(ps_lab: Lab, matrix: Matrix, role: None, site: None) -> None:
    """The framework's error says which setting it is, and how to get out, which works."""
    engine = ps_sqlalchemy.create_engine(ps_lab.url, bouncer="write-pool")
    with engine.connect() as conn, connection.cursor() as cursor:
        conn.execute(sa.text(f"SET ROLE {ROLE}"))
        conn.commit()
        cursor.execute(f"SET ROLE {ROLE}")
        drop(ps_lab)
        with pytest.raises(sa.exc.ProgrammingError, match=REFUSED) as in_sqlalchemy:
            conn.execute(sa.text("SELECT 1"))
        conn.rollback()
        with pytest.raises(ProgrammingError, match=REFUSED) as in_django:
            cursor.execute("SELECT 1")
        driver: Any = in_sqlalchemy.value.orig
        assert isinstance(driver, psycopg.Error)
        assert (classify(driver), classify(in_django.value)) == (SessionSettingRefused.failure,) * 2
        conn.execute(sa.text("RESET ROLE"))
        cursor.execute("RESET ROLE")
        assert conn.scalar(sa.text("SELECT current_user")) == "app"
    engine.dispose()
    matrix.sees("A role that was SET is dropped", "an error that names it, and how to get out (SET ROLE NONE), which works")
