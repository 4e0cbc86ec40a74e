"""A SQLAlchemy application on pgbench's tables: balances are read, and money moves in transactions like TPC-B's."""

from __future__ import annotations

from datetime import datetime  # noqa: TC003 - SQLAlchemy reads the annotation
from typing import TYPE_CHECKING, Final

from sqlalchemy import CHAR, BigInteger, func, insert, select, text, update
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from ps_sqlalchemy import Session

if TYPE_CHECKING:
    from random import Random

    from ps_sqlalchemy import Engine

__all__ = ["Account", "Bank", "Branch", "History"]

SCALE: Final = 10
"""The same as pgbench's `--scale`: the number of branches."""
ACCOUNTS_PER_BRANCH: Final = 100_000


class Base(DeclarativeBase):
    """The bank's tables."""


class Branch(Base):
    """A branch and the sum of its accounts."""

    __tablename__ = "pgbench_branches"

    bid: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    bbalance: Mapped[int]
    filler: Mapped[str | None] = mapped_column(CHAR(88))


class Account(Base):
    """An account."""

    __tablename__ = "pgbench_accounts"

    aid: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    bid: Mapped[int]
    abalance: Mapped[int]
    filler: Mapped[str] = mapped_column(CHAR(84))


class History(Base):
    """One movement of money. `reference` is the client's own name for it."""

    __tablename__ = "pgbench_history"

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    # Not unique: a write that was made twice has to show as two rows, not as an error.
    reference: Mapped[int] = mapped_column(BigInteger)
    bid: Mapped[int]
    aid: Mapped[int]
    delta: Mapped[int]
    mtime: Mapped[datetime] = mapped_column(server_default=func.now())


class Bank:
    """The bank's customers."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def prepare(self) -> None:
        """Create the tables over the direct path and fill them."""
        Base.metadata.create_all(self.engine.direct)
        with self.engine.direct.begin() as connection:
            connection.execute(insert(Branch), [{"bid": bid, "bbalance": 0} for bid in range(1, SCALE + 1)])
            # A million entries are sorted into a new index faster than they are put into one that is there.
            connection.execute(text("ALTER TABLE pgbench_accounts DROP CONSTRAINT pgbench_accounts_pkey"))
            connection.execute(
                text(
                    "INSERT INTO pgbench_accounts (aid, bid, abalance, filler)"
                    " SELECT aid, (aid - 1) / :each + 1, 0, '' FROM generate_series(1, :each * :scale) AS aid"
                ),
                {"each": ACCOUNTS_PER_BRANCH, "scale": SCALE},
            )
            connection.execute(text("ALTER TABLE pgbench_accounts ADD PRIMARY KEY (aid)"))
        with self.engine.direct.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("VACUUM (ANALYZE) pgbench_accounts"))

    def read(self, random: Random) -> bool:
        """Read one balance. Return whether a replica answered."""
        aid = random.randint(1, ACCOUNTS_PER_BRANCH * SCALE)
        with Session(self.engine) as session:
            row = session.execute(select(Account.abalance, func.pg_is_in_recovery()).where(Account.aid == aid)).one()
        return bool(row[1])

    def write(self, random: Random, reference: int) -> None:
        """Move money into an account, or out of it."""
        aid = random.randint(1, ACCOUNTS_PER_BRANCH * SCALE)
        bid = (aid - 1) // ACCOUNTS_PER_BRANCH + 1
        delta = random.randint(-5000, 5000)
        with Session(self.engine) as session, session.begin():
            session.execute(update(Account).where(Account.aid == aid).values(abalance=Account.abalance + delta))
            session.execute(update(Branch).where(Branch.bid == bid).values(bbalance=Branch.bbalance + delta))
            session.add(History(reference=reference, bid=bid, aid=aid, delta=delta))
