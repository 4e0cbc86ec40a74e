"""What the bank's clients do: balances are read, and money moves in transactions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sqlalchemy import func, select, text

from ps_demo.bank.models import Account, Base, Transfer, moves
from ps_sqlalchemy import Session

if TYPE_CHECKING:
    from random import Random

    from ps_sqlalchemy import Engine

__all__ = ["Bank"]

ACCOUNTS: Final = 1_000_000


class Bank:
    """The bank's workload."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def prepare(self) -> None:
        """Create the tables over the direct path and fill them."""
        Base.metadata.create_all(self.engine.direct)
        with self.engine.direct.begin() as connection:
            # A million entries are sorted into a new index faster than they are put into one that is there.
            connection.execute(text("ALTER TABLE bank_account DROP CONSTRAINT bank_account_pkey"))
            connection.execute(
                text("INSERT INTO bank_account (id, balance) SELECT id, 0 FROM generate_series(1, :accounts) AS id"),
                {"accounts": ACCOUNTS},
            )
            connection.execute(text("ALTER TABLE bank_account ADD PRIMARY KEY (id)"))
        with self.engine.direct.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("VACUUM (ANALYZE) bank_account"))

    def read(self, random: Random) -> bool:
        """Read one balance. Return whether a replica answered."""
        account = random.randint(1, ACCOUNTS)
        with Session(self.engine) as session:
            row = session.execute(select(Account.balance, func.pg_is_in_recovery()).where(Account.id == account)).one()
        return bool(row[1])

    def write(self, random: Random, reference: int) -> None:
        """Move money between two accounts."""
        source, target = random.sample(range(1, ACCOUNTS + 1), 2)
        amount = random.randint(1, 5000)
        with Session(self.engine) as session, session.begin():
            for statement in moves(source, target, amount):
                session.execute(statement)
            session.add(Transfer(reference=reference, source=source, target=target, amount=amount))
