"""How one statement travels: what goes before and after it in its message."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final

from ps_core._message.commit import TRANSACTION_SQL
from ps_core._message.script import NOTHING, Script
from ps_core.consistency import POSITION_SQL, REPLICA_POSITION_SQL

if TYPE_CHECKING:
    from ps_core._message.statement import Statement

__all__ = ["COMMIT_AND_POSITION", "POSITION", "READ_ONLY", "REPLICA_POSITION", "TRANSACTION", "Asks", "Plan"]

READ_ONLY: Final = b"SET LOCAL transaction_read_only=on"
POSITION: Final = Script(POSITION_SQL)
REPLICA_POSITION: Final = Script(REPLICA_POSITION_SQL)
TRANSACTION: Final = Script(TRANSACTION_SQL)
COMMIT_AND_POSITION: Final = Script(b"COMMIT", POSITION_SQL)


class Asks(Enum):
    """What the last command of a message asks for."""

    NOTHING = 0
    POSITION = 1
    """How far the server is: of a read."""
    COMMITTED_POSITION = 2
    """The same behind a COMMIT: of an autocommit write."""
    TRANSACTION = 3
    """The id of the transaction: behind its first write."""


@dataclass(slots=True)
class Plan:
    """How one statement travels that arrives while the connection is idle."""

    statement: Statement
    before: Script = NOTHING
    after: Script = NOTHING
    asks: Asks = Asks.NOTHING
    first: bool = True
    """Nothing precedes it in its transaction."""
    begin: bool = False
    """An explicit transaction is opened."""
    read_only: bool = False
    """This one statement is sent READ ONLY, which nobody asked for: a refusal (25006) is ours to handle."""
    again: bool = False
    """It was sent before, and a replica cancelled it."""
    apart: bool = False
    """The opening travels in a message of its own, the statement after it."""
