"""A package on top of SQLAlchemy, in a process of its own: `python -m tests.ecosystem.script`, as `tests.ecosystem.site`."""

import importlib
import json
import os
from typing import Any

import sqlalchemy as sa
from sqlalchemy import orm

import ps_sqlalchemy
from tests.ecosystem.site import answer, nothing

STOCK = "STOCK" in os.environ


def url() -> sa.URL:
    """Return the URL: of the primary's direct path for SQLAlchemy's own dialect, or of all paths for ours."""
    if STOCK:
        entry = json.loads(os.environ["STOCK"])
        names = {"username": "USER", "password": "PASSWORD", "host": "HOST", "database": "NAME"}
        parts = {name: entry[key] for name, key in names.items()}
        return sa.URL.create("postgresql+psycopg", port=int(entry["PORT"]), query=entry["OPTIONS"], **parts)
    bouncers = {"ps_bouncer": os.environ["PS_BOUNCER"], "ps_replica_bouncer": os.environ["PS_REPLICA_BOUNCER"]}
    return sa.make_url(os.environ["PS_URL"]).set(drivername="postgresql+ps").update_query_dict(bouncers)


engine: Any = sa.create_engine(url())
direct: sa.Engine = engine if STOCK else engine.direct
"""For what makes tables."""
sessionmaker: Any = orm.sessionmaker if STOCK else ps_sqlalchemy.sessionmaker


def main() -> None:
    """Work until there is nothing more to read."""
    module = importlib.import_module(f"tests.ecosystem.sites.{os.environ['SITE']}")
    with getattr(module, "running", nothing)():
        answer(module.work)


if __name__ == "__main__":
    main()
