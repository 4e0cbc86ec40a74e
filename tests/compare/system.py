"""What is compared: an application of accounts and transfers, set up in the way of each system."""

from importlib import import_module
from typing import Any, Final, Literal, Protocol

from ps_core import Topology
from ps_core.topology import Endpoint
from ps_demo.bank_sqlalchemy import ddl

ACCOUNTS: Final = 1000
TABLES: Final = f"""
DROP TABLE IF EXISTS bank_account, bank_transfer;
{ddl()};
INSERT INTO bank_account SELECT id, 0 FROM generate_series(1, {ACCOUNTS}) AS id;
CREATE INDEX ON bank_transfer (reference);
"""

Side = Literal["primary", "replica"]

SYSTEMS: Final = (
    "sqlalchemy_stock",
    "sqlalchemy_recipe",
    "advanced_alchemy_routing",
    "aws_wrapper",
    "sqlalchemy_ours",
    "sqlalchemy_ours_begin",
    "django_stock",
    "django_multidb",
    "django_ours",
)
"""The modules in tests/compare/systems, in the order of the tables."""


class System(Protocol):
    """The application, in one system's way. Every thread is a user of its own, every call a request."""

    def read(self, account: int) -> bool:
        """Read a balance; return whether a replica answered."""

    def read_own(self, reference: int) -> bool:
        """Look for a transfer that this user made; return whether it was found."""

    def transfer(self, reference: int, source: int, target: int, amount: int) -> None:
        """Move money between two accounts, and note it, in one transaction."""


class Module(Protocol):
    """A file of tests/compare/systems."""

    NAME: str
    DISTRIBUTIONS: tuple[str, ...]
    """What is installed for it; the versions are in the report."""
    REMARK: str
    """Where reads go, and what is sent again by whom."""

    def make(self, url: str, clients: int) -> System:
        """Set the system up for a database URL and so many threads."""


def load(name: str) -> Module:
    """Import a system's file."""
    module: Any = import_module(f"tests.compare.systems.{name}")
    return module  # type: ignore[no-any-return]


def bouncer(url: str, side: Side) -> Endpoint:
    """Return a bouncer: what stock psycopg and Django are given for it is the same for every system."""
    topology = Topology.from_url(url, bouncer="write-pool", replica_bouncer="read-pool")
    return topology.primary if side == "primary" else topology.replicas[0]
