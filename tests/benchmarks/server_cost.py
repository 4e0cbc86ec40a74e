"""Counts the instructions that PostgreSQL takes for what this project sends around a statement.

    python -m tests.benchmarks.server_cost

A server in single-user mode runs under valgrind's callgrind, so the numbers are the same each time, but for some hundredths,
whatever else the machine does. They are of parsing, planning and executing, and of text output; the network's part is not in
them. The page docs/generated/server-cost.md is written.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ps_core._connection.base import READ_ONLY
from ps_core._message.commit import SYNCHRONOUS_COMMIT_SQL, TRANSACTION_SQL
from ps_core._message.script import Script, Setting
from ps_core.consistency import (
    COMMITTED_POSITION_SQL,
    POSITION_SQL,
    REPLICA_POSITION_SQL,
    WRITTEN_POSITION_SQL,
    guard_setting,
    guard_sql,
    place_sql,
)
from ps_lab.postgres import Binaries
from ps_lab.processes import Account, Guard
from tests.benchmarks.worker import READ, TABLES, UPDATE

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["PARTS", "Server"]

PAGE: Final = Path(__file__).parents[2] / "docs" / "generated" / "server-cost.md"
KEY: Final = "7"
STATEMENT_TIMEOUT: Final = Setting(b"statement_timeout", b"'2000'")
TRANSACTION_TIMEOUT: Final = Setting(b"transaction_timeout", b"'3000'")
ALONE: Final = "BEGIN and COMMIT"
PARTS: Final[dict[str, tuple[bytes, ...]]] = {
    ALONE: (),
    "a SELECT by key": (READ.replace("%s", KEY).encode(),),
    "an UPDATE by key": (UPDATE.replace("%s", KEY).encode(),),
    "`statement_timeout`": Script.set_local([STATEMENT_TIMEOUT]).parts,
    "`transaction_timeout`, by way of zero": Script.set_local([TRANSACTION_TIMEOUT]).parts,
    "READ ONLY": (READ_ONLY,),
    "the guard of a replica, which sets `statement_timeout`": (guard_setting(guard_sql(1), STATEMENT_TIMEOUT.literal),),
    "the position behind a read on a replica": (REPLICA_POSITION_SQL,),
    "the position behind a read on the primary": (POSITION_SQL,),
    "whether it is a standby: behind the first read of a transaction": (place_sql(180000),),
    "the transaction's id: behind its first write": (TRANSACTION_SQL,),
    "how it commits: before COMMIT": (SYNCHRONOUS_COMMIT_SQL,),
    "the position behind that COMMIT": (COMMITTED_POSITION_SQL,),
    "the position behind a write in autocommit": (WRITTEN_POSITION_SQL,),
}
"""What is sent, by what it is for; each inside of a transaction."""
INTRODUCTION: Final = """\
# CPU of the server, by part

What the parts of a message cost PostgreSQL {major}, in thousands of instructions: parsing, planning, executing and text output,
in single-user mode under callgrind (`python -m tests.benchmarks.server_cost`). The network's part is not in it. The numbers do
not depend on what else the machine does. Each is the part's own: what BEGIN and COMMIT cost is taken off. How parts make up
messages: [what is sent](../connection.md).

| part | thousands of instructions |
|---|--:|
"""


class Server:
    """A database of its own, which one process at a time runs."""

    def __init__(self, guard: Guard) -> None:
        """`guard` has the folder; the tables of the benchmarks are made."""
        self._account = guard.account
        self._binaries = Binaries(guard)
        self.major = self._binaries.major
        self._folder = guard.folder / "pg"
        guard.run([self._binaries / "initdb", "-D", self._folder, "-U", "postgres", "--no-sync"])
        self._run([" ".join(statement.split()) for statement in TABLES.split(";") if statement.strip()])

    def instructions(self, statements: Sequence[bytes], times: int = 100) -> float:
        """Return the instructions of the statements in a transaction, once it has been run before."""
        lines = ["BEGIN", *(statement.decode() for statement in statements), "COMMIT"]
        first, all_of_them = (self._counted(lines * number) for number in (times // 5, times // 5 + times))
        return (all_of_them - first) / times

    def _counted(self, lines: Sequence[str]) -> int:
        said = self._run(lines, "valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null")
        found = re.search(r"Collected : (\d+)", said)
        assert found is not None, said
        return int(found[1])

    def _run(self, lines: Sequence[str], *under: str) -> str:
        """Run statements, one to a line, and return what was said of it."""
        server = (self._binaries / "postgres", "--single", "-D", self._folder, "-c", "fsync=off", "postgres")
        command: list[str | Path] = [*under, *server]
        text = "".join(f"{line}\n" for line in lines)
        options = self._account.options()
        done = subprocess.run(command, input=text, text=True, check=True, capture_output=True, cwd="/", **options)
        return str(done.stderr)


def main() -> None:
    """Write the page."""
    guard = Guard(Account())
    try:
        server = Server(guard)
        found = {what: server.instructions(statements) for what, statements in PARTS.items()}
        own = {what: number - found[ALONE] * (what != ALONE) for what, number in found.items()}
        rows = [f"| {what} | {number / 1000:.0f} |\n" for what, number in own.items()]
        PAGE.write_text(INTRODUCTION.format(major=server.major) + "".join(rows))
    finally:
        guard.close()


if __name__ == "__main__":
    main()
