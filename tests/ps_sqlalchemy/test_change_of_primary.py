"""An application at work while the primary changes."""

import threading
from contextlib import nullcontext

import pytest
import sqlalchemy as sa
from sqlalchemy import select

from ps_lab import Lab
from ps_lab.processes import wait_until
from ps_sqlalchemy import Engine, Session, using_primary
from tests.ps_sqlalchemy.conftest import Item


@pytest.mark.parametrize("event", ["switchover", "crash_primary"])
def test_reads_go_through_a_change_of_the_primary(ps_lab: Lab, engine: Engine, items: type[Item], event: str) -> None:
    """Sessions that read, on replicas and on the primary, see no error meanwhile; acknowledged writes are there."""
    stop, errors, acknowledged = threading.Event(), [], []
    reads = [0, 0]

    def read(on_primary: int) -> None:
        try:
            while not stop.is_set():
                with Session(engine) as session, using_primary() if on_primary else nullcontext():
                    session.scalar(select(sa.func.count()).select_from(items))
                reads[on_primary] += 1
        except Exception as exc:  # noqa: BLE001
            errors.append(exc)

    def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            try:
                with Session(engine) as session, session.begin():
                    session.add(items(id=number, note="x"))
            except sa.exc.DBAPIError:
                continue  # unknown: it may be there or not
            acknowledged.append(number)

    threads = [threading.Thread(target=read, args=(on_primary,)) for on_primary in (0, 0, 1, 1)] + [
        threading.Thread(target=write)
    ]
    for thread in threads:
        thread.start()
    try:
        getattr(ps_lab, event)()
        before = (*reads, len(acknowledged))
        wait_until(
            lambda: errors or all(now > then + 20 for now, then in zip((*reads, len(acknowledged)), before, strict=True)),
            "work after the event",
            timeout=40,
        )
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)
    for error in errors:
        raise error
    present = {row[0] for row in ps_lab.sql("SELECT id FROM sa_item")}
    assert set(acknowledged) <= present
