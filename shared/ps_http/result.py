"""What a statement returned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, overload

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ps_http._answer import Column, Raw

__all__ = ["Pending", "Result"]


class Result(Sequence[tuple[Any, ...]]):
    """The rows of one statement, which are tuples, and what the server told of it.

    Rows with a value that Python's types do not hold (a date of "infinity") raise `psycopg.DataError` when they are asked for, as
    they do of psycopg's cursors: the statement itself did not fail.
    """

    __slots__ = ("_found", "columns", "rowcount", "statusmessage")

    def __init__(self, raw: Raw, found: list[tuple[Any, ...]] | Exception) -> None:
        self._found = found
        self.columns: tuple[Column, ...] = raw.columns
        """Its columns: `name`, `type_code` (the type's OID), `size`, `modifier`."""
        self.rowcount: int = -1 if raw.count is None else raw.count
        """How many rows it returned or changed; -1 where the server does not say."""
        words = [raw.command, *(["0"] if raw.command == "INSERT" else []), *([] if raw.count is None else [str(raw.count)])]
        self.statusmessage: str = " ".join(words)
        """The command tag, as far as the protocol reports it: only the first word, if it has several ("CREATE TABLE")."""

    @property
    def _rows(self) -> list[tuple[Any, ...]]:
        if isinstance(self._found, Exception):
            raise self._found
        return self._found

    @overload
    def __getitem__(self, index: int) -> tuple[Any, ...]: ...
    @overload
    def __getitem__(self, index: slice) -> list[tuple[Any, ...]]: ...
    def __getitem__(self, index: int | slice) -> tuple[Any, ...] | list[tuple[Any, ...]]:
        return self._rows[index]

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return iter(self._rows)

    def __repr__(self) -> str:
        rows = "unreadable" if isinstance(self._found, Exception) else len(self._found)
        return f"<Result {self.statusmessage}, {rows} rows>"

    def one(self) -> tuple[Any, ...]:
        """Return the only row.

        Raises:
            ValueError: there is none, or more than one.
        """
        if len(self._rows) != 1:
            raise ValueError(f"the statement returned {len(self._rows)} rows, not one")
        return self._rows[0]

    def scalar(self) -> Any:
        """Return the first column of the first row; None where there is no row."""
        return self._rows[0][0] if self._rows else None

    def dicts(self) -> list[dict[str, Any]]:
        """Return the rows as dictionaries.

        Raises:
            ValueError: two columns have the same name, of which one would be lost.
        """
        names = [column.name for column in self.columns]
        if len(set(names)) < len(names):
            raise ValueError("two columns have the same name: name them by AS, or take the rows as they are")
        return [dict(zip(names, row, strict=True)) for row in self._rows]


class Pending:
    """The result of a statement in a batch: there when the block is over."""

    __slots__ = ("_result",)

    def __init__(self) -> None:
        self._result: Result | None = None

    @property
    def result(self) -> Result:
        """The result.

        Raises:
            RuntimeError: the batch was not sent yet, or failed.
        """
        if self._result is None:
            raise RuntimeError("the result is there when the block of the batch is over, and did not fail")
        return self._result

    def __repr__(self) -> str:
        return "<Pending>" if self._result is None else repr(self._result)
