"""What connections send, with names for the parts that are this library's own."""

from __future__ import annotations

import re
import tempfile
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Final

from ps_core._connection.base import ONE_SNAPSHOT, READ_ONLY
from ps_core._message.commit import SYNCHRONOUS_COMMIT_SQL, TRANSACTION_SQL
from ps_core.consistency import COMMITTED_POSITION_SQL, POSITION_SQL, REPLICA_POSITION_SQL, WRITTEN_POSITION_SQL, place_sql

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["sending"]

_NAMES: Final = {
    READ_ONLY: "read only",
    ONE_SNAPSHOT: "snapshot",
    TRANSACTION_SQL: "id",
    SYNCHRONOUS_COMMIT_SQL: "synchronous_commit",
    POSITION_SQL: "position",
    REPLICA_POSITION_SQL: "position",
    place_sql(180000): "place",
    place_sql(130000): "place",
    COMMITTED_POSITION_SQL: "committed position",
    WRITTEN_POSITION_SQL: "written position",
}
_SENT: Final = re.compile(r"^F\t(\d+)\t(Query|Parse)\t (?:\"\" )?\"(.*?)\"(?: \d+)*$", re.DOTALL | re.MULTILINE)


class Sent:
    """The messages with statements in them that were sent in a block, and their bytes."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        """Each as the names of its parts; a statement of the caller's is itself."""
        self.bytes = 0


@contextmanager
def sending(*connections: Any) -> Iterator[Sent]:
    """Yield what psycopg connections send in the block, once that is over."""
    sent = Sent()
    with ExitStack() as stack:
        files = [stack.enter_context(tempfile.TemporaryFile("w+b")) for _ in connections]
        for connection, file in zip(connections, files, strict=True):
            connection.pgconn.trace(file.fileno())
            connection.pgconn.set_trace_flags(1)  # PQTRACE_SUPPRESS_TIMESTAMPS
            stack.callback(connection.pgconn.untrace)
        yield sent
        for connection, file in zip(connections, files, strict=True):
            connection.pgconn.untrace()
            file.seek(0)
            for length, _, text in _SENT.findall(file.read().decode()):
                sent.messages.append("; ".join(_parts(text)))
                sent.bytes += int(length)


def _parts(text: str) -> Iterator[str]:
    before = ""
    for part in map(str.strip, text.split(";")):
        name = _NAMES.get(part.encode(), part)
        if "'replica_behind'" in part:
            name = "guard"
        elif name is part and part.startswith(("SET LOCAL ", "SELECT pg_catalog.set_config(")):
            name = "settings"
        if name and not name == before == "settings":
            yield name
        before = name
