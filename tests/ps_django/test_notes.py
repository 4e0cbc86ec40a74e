"""What a limit of ours ended says so on Django's errors, too."""

from __future__ import annotations

import pytest
from asgiref.sync import sync_to_async
from django.db import DataError, InternalError, OperationalError, connection, transaction

from ps_core import deadline, limits

SLEEP = "SELECT pg_sleep(5)"


def notes(error: BaseException) -> str:
    """Return the notes on an error."""
    return "\n".join(getattr(error, "__notes__", ()))


def run(sql: str = SLEEP) -> None:
    """Run a statement on the default connection."""
    with connection.cursor() as cursor:
        cursor.execute(sql)


def test_statement() -> None:
    """The note is on Django's error and on the driver's, once."""
    with limits(statement="50ms"), pytest.raises(OperationalError) as raised:
        run()
    assert notes(raised.value) == notes(raised.value.__cause__)  # type: ignore[arg-type] # there is one
    assert notes(raised.value).count("ps-postgres:") == 1
    assert 'limits(statement="0.05s")' in notes(raised.value)
    with limits(statement="off", transaction="50ms"), pytest.raises(InternalError) as over, transaction.atomic():
        run()
    assert "transaction_timeout of 0.05 s" in notes(over.value)
    with deadline("500ms"), pytest.raises(OperationalError) as ended:
        run()
    assert "the deadline of 0.5 s" in notes(ended.value)
    with pytest.raises(DataError) as other:
        run("SELECT 1 / (SELECT 0)")
    assert notes(other.value) == ""


async def test_async() -> None:
    """The same in an async view's thread."""

    def work() -> str:
        try:
            with limits(statement="50ms"), pytest.raises(OperationalError) as raised:
                run()
            return notes(raised.value)
        finally:
            connection.close()

    assert 'limits(statement="0.05s")' in await sync_to_async(work)()
