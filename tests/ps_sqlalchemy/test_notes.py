"""What a limit of ours ended says so on SQLAlchemy's errors, too."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import exc, text

from ps_core import deadline, limits
from ps_sqlalchemy import Session, create_async_engine, create_engine

if TYPE_CHECKING:
    from ps_lab import Lab
    from ps_sqlalchemy import Engine

SLEEP = text("SELECT pg_sleep(5)")


def notes(error: BaseException) -> str:
    """Return the notes on an error."""
    return "\n".join(getattr(error, "__notes__", ()))


@pytest.mark.parametrize("kind", ["engine", "replica", "session", "url alone"])
def test_statement(ps_lab: Lab, engine: Engine, kind: str) -> None:
    """The note is on the wrapping error and on the driver's, once; the error is otherwise as SQLAlchemy's."""
    alone = create_engine(ps_lab.url) if kind == "url alone" else None
    assert engine.replica is not None
    bind = alone or (engine.replica if kind == "replica" else engine)
    try:
        with limits(statement="50ms"), pytest.raises(exc.OperationalError) as raised:
            if kind == "session":
                with Session(engine) as session:
                    session.execute(SLEEP)
            else:
                with bind.connect() as conn:
                    conn.execute(SLEEP)
    finally:
        if alone is not None:
            alone.dispose()
    assert notes(raised.value) == notes(raised.value.orig)  # type: ignore[arg-type] # there is one
    assert notes(raised.value).count("ps-postgres:") == 1
    assert 'limits(statement="0.05s")' in notes(raised.value)
    assert ("'replica" in notes(raised.value)) is (kind in ("replica", "session"))


def test_transaction_and_option(engine: Engine) -> None:
    """25P04, and a limit that a statement's option sets; what no limit ended has no note."""
    with engine.connect() as conn:
        with limits(statement="off", transaction="50ms"), pytest.raises(exc.InternalError) as over:
            conn.execute(SLEEP)
    assert "transaction_timeout of 0.05 s" in notes(over.value)
    with Session(engine) as session, pytest.raises(exc.OperationalError) as option:
        session.execute(SLEEP, execution_options={"ps_limits": {"statement": "50ms"}})
    assert "statement_timeout of 0.05 s" in notes(option.value)
    with engine.connect() as conn, pytest.raises(exc.DataError) as other:
        conn.execute(text("SELECT 1 / (SELECT 0)"))
    assert notes(other.value) == ""


async def test_async(ps_lab: Lab) -> None:
    """The same for asyncio; and a deadline, whose statement the server ended."""
    engine = create_async_engine(ps_lab.url, bouncer="write-pool", statement_timeout="100ms", transaction_timeout="1s")
    try:
        async with engine.connect() as conn:
            with pytest.raises(exc.OperationalError) as own:
                await conn.execute(SLEEP)
            await conn.rollback()
            with deadline("50ms"), pytest.raises(exc.OperationalError) as over:
                await conn.execute(SLEEP)
    finally:
        await engine.dispose()
    assert "statement_timeout of 0.1 s ended this on the endpoint 'primary'" in notes(own.value)
    assert "PS_STATEMENT_TIMEOUT" in notes(own.value)
    assert "the deadline of 0.05 s" in notes(over.value)
