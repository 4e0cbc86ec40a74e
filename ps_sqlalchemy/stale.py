"""Lock and compare: a row that was read from a replica never silently overwrites a newer one.

What was read from a replica may have been changed on the primary since. An instance keeps what a replica gave, wherever it goes:
through `expunge()`, `merge()` and pickle to other sessions. Before its row is updated or deleted, the row is locked on the
primary and compared with that. What the primary itself has given since, or confirmed, is no longer a replica's.
"""

from __future__ import annotations

import datetime as dt
import decimal
import enum
import pickle
import uuid
from collections import defaultdict
from contextlib import suppress
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import sqlalchemy as sa
from psycopg.adapt import Transformer
from sqlalchemy import orm
from sqlalchemy.orm import base, exc
from sqlalchemy.orm.base import LoaderCallableStatus

from ps_core._documentation import see

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from sqlalchemy.orm import ColumnProperty, InstanceState, Mapper

    Values = tuple[Any, ...]

__all__ = ["READ", "Read", "carry", "check_rows", "drop", "is_kept", "note_written"]

BATCH: Final = 500
"""Rows by statement."""

READ: Final = "ps_read"
"""The execution option that holds a query's `Read`."""

_KEPT: Final = "_ps_kept"
"""The attribute of an instance's state: what a replica gave, in the order of `_Columns.names`."""
_PICKLED: Final = "ps_replica"
_COLUMNS: Final = "ps_columns"

_NONE: Final = LoaderCallableStatus.NO_VALUE
"""In the place of a value that no replica gave."""

_UNCHANGEABLE: Final = frozenset(
    {type(None), bool, int, float, complex, str, bytes, decimal.Decimal, uuid.UUID, type(_NONE)}
    | {dt.date, dt.time, dt.datetime, dt.timedelta}
)


_PLAIN: Final = (
    *(sa.Integer, sa.Numeric, sa.String, sa.Boolean, sa.LargeBinary, sa.Uuid),
    *(sa.Date, sa.Time, sa.DateTime, sa.Interval),
)
"""SQLAlchemy's types whose values cannot be changed in place."""


class Read:
    """One query: whether a replica answers it."""

    __slots__ = ("columns", "replica")

    def __init__(self) -> None:
        self.replica = False
        self.columns: dict[type[Any], _Columns] = {}
        """What is compared, by class of the instances that were loaded."""


class _Frozen(NamedTuple):
    """A value that may be changed in place, as it was."""

    pickled: bytes


class _Columns:
    """What is compared of a mapper's instances: all columns but the primary key's."""

    def __init__(self, mapper: Mapper[Any]) -> None:
        self.props: list[ColumnProperty[Any]] = [
            prop for prop in mapper.column_attrs if isinstance(column := prop.columns[0], sa.Column) and not column.primary_key
        ]
        self.names = tuple(prop.key for prop in self.props)
        self.changeable = [place for place, prop in enumerate(self.props) if not _is_plain(prop.columns[0].type)]
        self.places = {name: place for place, name in enumerate(self.names)}
        version = mapper.version_id_col
        self.version = None if version is None else self.places.get(mapper.get_property_by_column(version).key)
        self._all: Callable[[Any], Values] = itemgetter(*self.names) if len(self.names) > 1 else self._some
        self.read = self._frozen if self.changeable else self._all
        """What is kept of an instance's loaded values. Raises KeyError where some are deferred: `read_some` does not."""

    def read_some(self, loaded: Any) -> Values:
        return self._freeze(self._some(loaded))

    def _some(self, loaded: Any) -> Values:
        return tuple(loaded.get(name, _NONE) for name in self.names)

    def _frozen(self, loaded: Any) -> Values:
        return self._freeze(self._all(loaded))

    def _freeze(self, values: Values) -> Values:
        given = list(values)
        for place in self.changeable:
            given[place] = _freeze(given[place])
        return tuple(given)

    @staticmethod
    def of(state: InstanceState[Any]) -> _Columns:
        info = state.manager.info
        columns: _Columns | None = info.get(_COLUMNS)
        if columns is None:
            columns = info[_COLUMNS] = _Columns(state.mapper)
        return columns


def _is_plain(kind: Any) -> bool:
    return isinstance(kind, _PLAIN) and type(kind).__module__.startswith("sqlalchemy.")


# --- what a replica gave ---


def is_kept(state: InstanceState[Any]) -> bool:
    """Return whether an instance has values of a replica's that the primary has not confirmed."""
    return getattr(state, _KEPT, None) is not None


def drop(state: InstanceState[Any]) -> None:
    """From now on, nothing of an instance is a replica's."""
    if is_kept(state):
        setattr(state, _KEPT, None)


def note_written(state: InstanceState[Any]) -> None:
    """What was updated has the primary's value."""
    if is_kept(state):
        _replace(state, dict.fromkeys(state.committed_state, _NONE))


def carry(source: InstanceState[Any], target: InstanceState[Any]) -> None:
    """An instance was merged into another one, which now has its values."""
    if is_kept(source) and target is not source:
        _replace(target, _given(source))


def _given(state: InstanceState[Any]) -> dict[str, Any]:
    kept: Values = getattr(state, _KEPT)
    return {name: value for name, value in zip(_Columns.of(state).names, kept, strict=True) if value is not _NONE}


def _replace(state: InstanceState[Any], values: dict[str, Any]) -> None:
    columns, kept = _Columns.of(state), getattr(state, _KEPT, None)
    new = dict(zip(columns.names, kept, strict=True)) if kept is not None else dict.fromkeys(columns.names, _NONE)
    new.update((name, value) for name, value in values.items() if name in new)
    setattr(state, _KEPT, None if all(value is _NONE for value in new.values()) else tuple(new.values()))


def _freeze(value: Any) -> Any:
    kind = type(value)
    if kind in _UNCHANGEABLE or isinstance(value, enum.Enum):
        return value
    if (kind is dict and _UNCHANGEABLE.issuperset(map(type, value.values()))) or (
        kind is list and _UNCHANGEABLE.issuperset(map(type, value))
    ):
        return value.copy()
    try:
        return _Frozen(pickle.dumps(value, pickle.HIGHEST_PROTOCOL))
    except Exception:  # noqa: BLE001 - whatever a user's type raises: what it was cannot be known later
        return _NONE


def _thaw(value: Any) -> Any:
    if not isinstance(value, _Frozen):
        return value
    try:
        return pickle.loads(value.pickled)  # noqa: S301 - made here, or as trusted as the pickled instance that it came in
    except Exception:  # noqa: BLE001 - as above
        return _NONE


@sa.event.listens_for(orm.Mapper, "load", raw=True)
def _on_load(state: Any, context: Any) -> None:
    # For each row of each list, so as little as can be. The key is the class: its hash, unlike a manager's, is no Python code.
    if context is not None and (read := context.execution_options.get(READ)) is not None and read.replica:
        instance = state.obj()
        columns = read.columns.get(type(instance))
        if columns is None:
            columns = read.columns[type(instance)] = _Columns.of(state)
        loaded = base.instance_dict(instance)
        try:
            state._ps_kept = columns.read(loaded)
        except KeyError:  # deferred
            state._ps_kept = columns.read_some(loaded)


@sa.event.listens_for(orm.Mapper, "refresh", raw=True)
def _on_refresh(state: Any, context: Any, attrs: Iterable[str] | None) -> None:
    read: Read | None = getattr(context, "execution_options", {}).get(READ)
    if read is not None and read.replica:
        if attrs is None:
            _on_load(state, context)
        else:
            _replace(state, {name: _freeze(state.dict.get(name, _NONE)) for name in attrs})
    else:
        _on_expire(state, attrs)  # nothing of this is a replica's


@sa.event.listens_for(orm.Mapper, "expire", raw=True)
def _on_expire(state: Any, attrs: Iterable[str] | None) -> None:
    if is_kept(state):
        drop(state) if attrs is None else _replace(state, dict.fromkeys(attrs, _NONE))


@sa.event.listens_for(orm.Mapper, "pickle", raw=True)
def _on_pickle(state: Any, state_dict: dict[str, Any]) -> None:
    if is_kept(state):  # in a form that other versions of the model, and processes without this package, can read
        given = _given(state)
        frozen = {name: value.pickled for name, value in given.items() if isinstance(value, _Frozen)}
        state_dict[_PICKLED] = {name: value for name, value in given.items() if name not in frozen}, frozen


@sa.event.listens_for(orm.Mapper, "unpickle", raw=True)
def _on_unpickle(state: Any, state_dict: dict[str, Any]) -> None:
    if _PICKLED in state_dict:
        plain, frozen = state_dict[_PICKLED]
        _replace(state, plain | {name: _Frozen(pickled) for name, pickled in frozen.items()})


# --- before a row is written ---


def check_rows(session: orm.Session, states: Iterable[InstanceState[Any]]) -> None:
    """Lock and compare the rows of those instances that have values of a replica's.

    Raises:
        sqlalchemy.orm.exc.StaleDataError: a column that was read from a replica has another value on the primary.
    """
    by_mapper: defaultdict[Mapper[Any], list[InstanceState[Any]]] = defaultdict(list)
    for state in states:
        kept: Values | None = getattr(state, _KEPT, None)
        if kept is None or state.key is None or all(value is _NONE for value in kept):
            continue
        version = _Columns.of(state).version
        if version is None or kept[version] is _NONE:  # else the version in its WHERE is as old as the rest
            by_mapper[state.mapper].append(state)
    for mapper in sorted(by_mapper, key=lambda mapper: mapper.class_.__qualname__):  # sessions lock in the same order
        states = by_mapper[mapper]
        for start in range(0, len(states), BATCH):
            _check(session, mapper, {tuple(state.key[1]): state for state in states[start : start + BATCH] if state.key})


def _check(session: orm.Session, mapper: Mapper[Any], states: dict[tuple[Any, ...], InstanceState[Any]]) -> None:
    key = mapper.primary_key
    places = [
        (place, prop)
        for place, prop in enumerate(_Columns.of(next(iter(states.values()))).props)
        if any(getattr(state, _KEPT)[place] is not _NONE for state in states.values())
    ]
    rows = (
        sa.select(*key, *(prop.columns[0] for _, prop in places))
        .select_from(mapper.persist_selectable)
        .where(sa.tuple_(*key).in_(list(states)) if len(key) > 1 else key[0].in_([identity[0] for identity in states]))
        .order_by(*key)
    )
    connection = session.connection(bind_arguments={"mapper": mapper})
    for row in connection.execute(_lock(rows, mapper.persist_selectable)):
        state = states.get(tuple(row[: len(key)]))
        if state is None:
            continue
        kept: Values = getattr(state, _KEPT)
        for (place, prop), value in zip(places, row[len(key) :], strict=True):
            before = _thaw(kept[place])
            if before is not _NONE and not _same(connection, prop.columns[0].type, before, value):
                wrong = (
                    f"{mapper.class_.__name__} {state.key[1] if state.key else ()}: {prop.key!r} was changed on the primary since"
                    " it was read from a replica: roll back, read it again (refresh, or with_for_update()), then write"
                )
                raise see(exc.StaleDataError(wrong), "StaleDataError")
    for state in states.values():
        drop(state)


def _lock(rows: sa.Select[Any], selectable: Any) -> sa.Select[Any]:
    if not isinstance(selectable, sa.Join):
        return rows.with_for_update()
    tables = list(_inner(selectable))
    return rows.with_for_update(of=tables) if tables else rows


def _inner(selectable: Any) -> Iterator[Any]:
    """Yield what PostgreSQL can lock of a join: not the nullable side of an outer one."""
    if not isinstance(selectable, sa.Join):
        yield selectable
    elif not selectable.full:
        yield from _inner(selectable.left)
        if not selectable.isouter:
            yield from _inner(selectable.right)


def _same(connection: sa.Connection, kind: sa.types.TypeEngine[Any], before: Any, now: Any) -> bool:
    """Compare as the type does; where that says no, what would be sent: NaN, arrays and objects may not equal themselves."""
    with suppress(Exception):
        if kind.compare_values(before, now) is True:
            return True
    try:
        process = kind.dialect_impl(connection.dialect).bind_processor(connection.dialect)
        sent = (before, now) if process is None else (process(before), process(now))
        if _equal(*sent):
            return True
        transformer = Transformer(connection.connection.driver_connection)
        return transformer.as_literal(sent[0]) == transformer.as_literal(sent[1])
    except Exception:  # noqa: BLE001 - whatever a user's type raises: nothing says that they are the same
        return False


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(_equal, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_equal(value, other[name]) for name, value in one.items())
    try:
        return bool(one == other) or bool(one != one and other != other)  # noqa: PLR0124 - NaN
    except Exception:  # noqa: BLE001 - an array has no truth
        return False
