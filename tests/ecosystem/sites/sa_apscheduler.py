"""APScheduler."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore
from apscheduler.schedulers.background import BackgroundScheduler

from ps_lab.processes import wait_until
from tests.ecosystem.script import engine

ran: list[str] = []
scheduler = BackgroundScheduler(jobstores={"default": SQLAlchemyJobStore(engine=engine)}, jobstore_retry_interval=1)


def job(name: str) -> None:
    """Tell that it ran."""
    ran.append(name)


@contextmanager
def running() -> Iterator[None]:
    """Run the scheduler."""
    scheduler.start()
    yield
    scheduler.shutdown()


def work() -> dict[str, Any]:
    """Add jobs that run once, by an interval, and not yet; look at the store, and remove them."""
    run = uuid4().hex
    here = f"{__name__}:job"
    scheduler.add_job(here, "interval", [f"{run} often"], seconds=0.2, id=f"{run} often", max_instances=3)
    scheduler.add_job(here, "interval", [f"{run} later"], hours=1, id=f"{run} later")
    scheduler.add_job(here, "date", [f"{run} once"], id=f"{run} once", misfire_grace_time=None)
    wait_until(lambda: ran.count(f"{run} often") >= 2 and f"{run} once" in ran, "the jobs", timeout=20)
    scheduler.modify_job(f"{run} later", name="much later")
    stored = sorted(one.id.split()[1] + " " + one.name for one in scheduler.get_jobs() if one.id.startswith(run))
    for name in ("often", "later"):
        scheduler.remove_job(f"{run} {name}")
    return {"stored": stored, "once": ran.count(f"{run} once"), "left": [one.id for one in scheduler.get_jobs()]}
