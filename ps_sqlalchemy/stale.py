"""Lock and compare: a row that was read from a replica never silently overwrites a newer one.

What a session read from a replica may have been changed on the primary since. Before such a row is updated or deleted, it is
locked on the primary and compared with what the session loaded.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.orm import exc
from sqlalchemy.orm.base import LoaderCallableStatus

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.orm import ColumnProperty, InstanceState, Mapper

__all__ = ["check_rows"]

BATCH: Final = 500
"""Rows by statement."""

_MISSING: Final = object()


def check_rows(session: orm.Session, checked: set[Any]) -> None:
    """Lock and compare the rows that are about to be updated or deleted, but for those in `checked`, and add them to it.

    Raises:
        sqlalchemy.orm.exc.StaleDataError: a column that the session loaded has another value on the primary.
    """
    changed = [obj for obj in session.dirty if session.is_modified(obj)]
    by_mapper: defaultdict[Mapper[Any], list[InstanceState[Any]]] = defaultdict(list)
    for obj in (*changed, *session.deleted):
        state: InstanceState[Any] = sa.inspect(obj)
        if state.key is not None and state not in checked and state.mapper.version_id_col is None:
            by_mapper[state.mapper].append(state)
            checked.add(state)
    for mapper, states in by_mapper.items():
        for start in range(0, len(states), BATCH):
            _check(session, mapper, {tuple(state.key[1]): state for state in states[start : start + BATCH] if state.key})


def _check(session: orm.Session, mapper: Mapper[Any], states: dict[tuple[Any, ...], InstanceState[Any]]) -> None:
    key = mapper.primary_key
    props = list(_loaded(mapper, states.values()))
    columns = [*key, *(prop.columns[0] for prop in props)]
    rows = (
        sa.select(*columns)
        .select_from(mapper.persist_selectable)
        .where(sa.tuple_(*key).in_(list(states)) if len(key) > 1 else key[0].in_([identity[0] for identity in states]))
        .order_by(*key)  # two sessions lock in the same order
        .with_for_update()
    )
    for row in session.execute(rows):
        state = states.get(tuple(row[: len(key)]))
        if state is None:
            continue
        for prop, value in zip(props, row[len(key) :], strict=True):
            before = _before(state, prop.key)
            if before is not _MISSING and not prop.columns[0].type.compare_values(before, value):
                raise exc.StaleDataError(
                    f"{mapper.class_.__name__} {state.key[1] if state.key else ()}: {prop.key!r} was changed on the primary since"
                    " this session read the row from a replica: read it again (refresh, or with_for_update()), then write"
                )


def _loaded(mapper: Mapper[Any], states: Any) -> Iterator[ColumnProperty[Any]]:
    for prop in mapper.column_attrs:
        column = prop.columns[0]
        if isinstance(column, sa.Column) and not column.primary_key and any(prop.key in state.dict for state in states):
            yield prop


def _before(state: InstanceState[Any], name: str) -> Any:
    """Return the value that was loaded; `_MISSING` where none was."""
    if name not in state.dict and name not in state.committed_state:
        return _MISSING
    value = state.committed_state.get(name, state.dict.get(name, _MISSING))
    return _MISSING if isinstance(value, LoaderCallableStatus) else value
