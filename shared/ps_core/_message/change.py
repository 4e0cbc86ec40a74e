"""What a text does to a session that the pooler does not keep. Pure.

A SET of the session's is sent as SET LOCAL, so that the server validates it, a rollback undoes it, and nothing of it can stay on
the pooler's server connection. Its value is asked for in the same message, by SHOW, which takes no snapshot. `Session` holds it
from then on (`ps_core._message.session`).

>>> read_change("SET SESSION search_path = tenant_1, public").sent
'SET LOCAL   search_path = tenant_1, public'
>>> read_change("select set_config('app.tenant', '42', false)").sent
"select set_config('app.tenant', '42', true )"
>>> read_change("SET TIME ZONE 'UTC'") is None, read_change("SET LOCAL work_mem = '8MB'") is None
(True, True)
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Final, NamedTuple

from ps_core._message.statement import ESCAPED, LONGEST_NAME, end_of_comment

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

__all__ = [
    "ESCAPES",
    "KEPT_BY_POOLER",
    "MODES",
    "ROLE",
    "SEARCH_PATH",
    "Change",
    "NotHeld",
    "modes_named",
    "read_change",
    "read_savepoints",
]

ROLE: Final = "role"
SEARCH_PATH: Final = "search_path"
MODES: Final = {
    "default_transaction_isolation": "transaction_isolation",
    "default_transaction_read_only": "transaction_read_only",
    "default_transaction_deferrable": "transaction_deferrable",
}
"""What would have no effect as SET LOCAL, since the transaction has begun; and what has the same effect on it."""
ESCAPES: Final = "standard_conforming_strings"
"""Off: a backslash is an escape in every string."""
KEPT_BY_POOLER: Final = ("TimeZone", "DateStyle", "client_encoding", ESCAPES)
"""PgBouncer keeps these by client, and drivers go by the server's reports of them: they are really set, and leak to nobody."""
_KEPT: Final = frozenset(map(str.lower, KEPT_BY_POOLER))
_OF_TRANSACTION: Final = frozenset(MODES.values())
"""The open transaction's own: PostgreSQL forgets them with it."""
_OLD_NAMES: Final = {"sort_mem": "work_mem", "vacuum_mem": "maintenance_work_mem"}
_REFUSED: Final = {
    "session_authorization": (
        "SET SESSION AUTHORIZATION: behind a transaction pooler the next client would have it: write SET ROLE, or use a direct"
        " connection"
    ),
    "seed": (
        "SET seed: behind a transaction pooler the next client's random() would repeat: call setseed() in the transaction that"
        " uses random(), or use a direct connection"
    ),
    "idle_session_timeout": (
        "SET idle_session_timeout: behind a transaction pooler it would end the server connection of others: let the pooler end"
        " idle clients (client_idle_timeout), or use a direct connection"
    ),
    "intervalstyle": (
        "SET IntervalStyle: the driver reads intervals in the style 'postgres' alone: write"
        " to_char(...), or SET LOCAL IntervalStyle in a transaction that turns intervals into text, or use a direct connection"
    ),
}
_SEVERAL: Final = (
    "a text of several statements sets something for the session, which a transaction pooler does not keep: send each statement"
    " by itself, or write SET LOCAL"
)
_UNKNOWN: Final = (
    "set_config() for the session, of which the text does not show the setting's name or the third argument: behind a transaction"
    " pooler nobody could hold it: write set_config('name', value, false) with both as literals, or true for the transaction"
    " alone"
)
_BOTH: Final = "set_config() of one setting for the session and for the transaction in one statement: write two statements"
_LATER: Final = (
    "a cursor sets something for the session when it is fetched, where nobody could take it: write set_config(..., true), or"
    " a statement of its own"
)
_UPDATED: Final = (
    "an UPDATE of pg_settings sets for the session what the text does not name, and behind a transaction pooler nobody could"
    " hold it: write SET, or set_config('name', value, false)"
)
_FILLED: Final = frozenset({"table", "materialized"})
"""What CREATE ... AS fills at once, with what its query returns."""
_DONE: Final = frozenset({"analyze", "analyse"})
"""What makes EXPLAIN do what it explains."""

_PLAIN: Final = r"""'(?:[^']|'')*+(?:'|\Z)"""
_TOKENS: Final = (
    rf"""(?P<blank>\s+|--[^\r\n]*)|(?P<comment>/\*)|(?P<plain>{_PLAIN})|(?P<string>(?:[bBnNxX]|[uU]&){_PLAIN})|(?P<escape>[eE]{ESCAPED})"""
    r"""|(?P<quoted>"(?:[^"]|"")*+(?:"|\Z))|(?P<dollar>\$(?:[^\W\d]\w*)?\$)"""
    r"""|(?P<word>[A-Za-z_\x80-\U0010ffff][A-Za-z0-9_$\x80-\U0010ffff]*)|(?P<number>[0-9][0-9.]*)|(?P<symbol>::|=>|:=|.)"""
)


@cache  # made when it is needed: few statements set anything, and it takes as long as a round trip
def _token(*, escapes: bool) -> re.Pattern[str]:
    """Return what reads one token. `escapes`: `standard_conforming_strings` is off."""
    tokens = _TOKENS.replace(rf"(?P<plain>{_PLAIN})", rf"(?P<plain>{ESCAPED})") if escapes else _TOKENS
    return re.compile(tokens, re.DOTALL)


_NO: Final = frozenset({"false", "null", "f", "no", "off", "n", "0"})
_YES: Final = frozenset({"true", "t", "yes", "on", "y", "1"})


class _Token(NamedTuple):
    kind: str
    text: str
    start: int
    end: int

    @property
    def word(self) -> str:
        """The keyword or the name that it may be, in lower case; "" where it is none."""
        return self.text.lower() if self.kind == "word" else ""

    @property
    def identifier(self) -> str:
        """The identifier that it is; "" where it is none."""
        return self.text[1:-1].replace('""', '"') if self.kind == "quoted" else self.word

    @property
    def name(self) -> str:
        """The name of a setting that it is: these are found whatever case they are written in."""
        return self.identifier.lower()


@dataclass(frozen=True, slots=True)
class Change:
    """What one text does to the session, and how it travels."""

    sent: str
    """The text that is sent in its place."""
    asks: tuple[str, ...] = ()
    """The settings whose values are asked for behind it, in the order in which they are set."""
    drops: tuple[str, ...] = ()
    """The settings that are held no longer."""
    drops_all: bool = False
    """All of them are; the role is no setting in this."""
    drops_role: bool = False
    by_set: bool = False
    """It is a SET, which takes lists as several values."""
    at: int = 0
    """Where `sent` begins to be longer than the text,"""
    longer: int = 0
    """and by how many characters."""
    is_way_out: bool = False
    """It travels without what is held: where that has become invalid, this is how to get out."""

    def questions(self) -> tuple[bytes, ...]:
        """Return what asks for the values, as PostgreSQL would show them.

        SHOW takes no snapshot, so that SET TRANSACTION may follow; a function's call has taken one, and may not have been
        reached, so that the setting need not exist.
        """
        if not self.by_set:
            return tuple(b"SELECT pg_catalog.current_setting('%s',true)" % name.replace("'", "''").encode() for name in self.asks)
        return tuple(
            b"SHOW " + b".".join(b'"%s"' % part.replace('"', '""').encode() for part in name.split(".")) for name in self.asks
        )


@dataclass(frozen=True, slots=True)
class NotHeld:
    """A text that sets for the session what cannot be held."""

    why: str
    """And what to write instead."""


def read_change(text: str, *, escapes: bool = False) -> Change | NotHeld | None:
    """Return what `text`, values included, does to the session; None: nothing that this side has to hold.

    `escapes`: a backslash is one in every string (`standard_conforming_strings` is off).
    """
    changes = [_read(text, statement) for statement in _statements(_tokens(text, escapes=escapes))]
    match changes:
        case [change]:
            return change
        case _:
            return NotHeld(_SEVERAL) if any(changes) else None


def _read(text: str, tokens: Sequence[_Token]) -> Change | NotHeld | None:
    words = [token.word for token in tokens]
    match words[0]:
        case "set":
            return _read_set(text, tokens)
        case "reset":
            return _read_reset(text, tokens)
        case "discard":
            return Change(text, drops_all=True, drops_role=True, is_way_out=True) if _word(tokens, 1) == "all" else None
        case "create" if "as" not in words or _FILLED.isdisjoint(words[:4]):
            return None  # a function, a view, a default: they run when they are used
        case "explain" if _DONE.isdisjoint(words):
            return None
        case "declare" if isinstance(_read_functions(text, tokens), Change):
            return NotHeld(_LATER)
    return _read_functions(text, tokens)


def _read_set(text: str, tokens: Sequence[_Token]) -> Change | NotHeld | None:
    at = 2 if _keyword(tokens, 1) == "session" and _word(tokens, 2) not in ("characteristics", "authorization") else 1
    match _keyword(tokens, at), _word(tokens, at + 1):
        case ("local" | "transaction" | "constraints" | "names", _):
            return None
        case ("time", "zone"):
            return None
        case ("session", "authorization"):
            return NotHeld(_REFUSED["session_authorization"])
        case ("session", "characteristics"):
            named = modes_named(text)
            names = [name for name, mode in MODES.items() if mode in named]
        case ("schema", after) if after != "to" and _text(tokens, at + 1) != "=":
            names = [SEARCH_PATH]
        case ("xml", "option"):
            names = ["xmloption"]
        case _:
            name, end = _dotted(tokens, at)
            if not name or name in _KEPT or name in _OF_TRANSACTION:
                return None
            value = tokens[end + 1 :]
            if [token.word for token in value] == ["default"]:
                return _dropping(text, name)
            if name in _REFUSED and not (name == "intervalstyle" and _is_postgres(value)):
                return NotHeld(_REFUSED[name])
            names = [name]
    way_out = ROLE in names
    if at == 2:
        scope = tokens[1]
        sent = text[: scope.start] + "LOCAL".ljust(len("SESSION")) + text[scope.end :]
        return Change(sent, tuple(names), by_set=True, is_way_out=way_out)
    end, local = tokens[0].end, " LOCAL"
    sent = text[:end] + local + text[end:]
    return Change(sent, tuple(names), by_set=True, at=end, longer=len(local), is_way_out=way_out)


def _read_reset(text: str, tokens: Sequence[_Token]) -> Change | None:
    match _keyword(tokens, 1):
        case "all":
            return Change(text, drops_all=True, is_way_out=True)
        case "session" | "transaction" | "time":
            return None
    name, _ = _dotted(tokens, 1)
    return None if not name or name in _KEPT or name in _OF_TRANSACTION else _dropping(text, name)


def _dropping(text: str, name: str) -> Change:
    """Return what lets go of one setting. What stays on the server then is what its session began with."""
    if name == ROLE:
        return Change(text, drops_role=True, is_way_out=True)
    return Change(text, drops=(name,), is_way_out=True)


def _read_functions(text: str, tokens: Sequence[_Token]) -> Change | NotHeld | None:
    """Read the calls of set_config() in a statement of any kind."""
    names: list[str] = []
    dropped: list[str] = []
    of_transaction: list[str] = []
    sent = text
    for at, token in enumerate(tokens):
        if token.name != "set_config" or _text(tokens, at + 1) != "(" or not _is_own(tokens, at):
            continue
        arguments = _arguments(tokens, at + 2)
        if len(arguments) != 3:
            continue  # the server refuses it, or it is somebody's own
        name, value, is_local = map(_literal, arguments)
        local = _value(is_local)
        if local in _YES:
            of_transaction.append(_key(_value(name)))
            continue
        key = _key(_value(name))
        if key in _KEPT or key in _OF_TRANSACTION:
            continue
        if name is None or name.kind != "plain" or is_local is None or local not in _NO:
            return NotHeld(_UNKNOWN)
        if value is not None and value.word == "null":
            dropped.append(key)  # as by RESET
            continue
        if key in _REFUSED and not (key == "intervalstyle" and value is not None and _value(value) == "postgres"):
            return NotHeld(_REFUSED[key])
        names.append(key)
        # As long as it was, so that the server's positions are the caller's.
        literal = "true" if is_local.kind == "word" else "'t'"
        sent = sent[: is_local.start] + literal.ljust(is_local.end - is_local.start) + sent[is_local.end :]
    if not (names or dropped):
        return NotHeld(_UPDATED) if _updates_settings(tokens) else None
    if not {*names, *dropped}.isdisjoint(of_transaction):
        return NotHeld(_BOTH)
    drops = tuple(name for name in dropped if name != ROLE)
    way_out = ROLE in names or ROLE in dropped
    return Change(sent, tuple(names), drops, drops_role=ROLE in dropped, is_way_out=way_out)


def _updates_settings(tokens: Sequence[_Token]) -> bool:
    """Return whether UPDATE is given the view of all settings."""
    names = [token.name for token in tokens if token.name not in ("", "only", "pg_catalog")]
    return ("update", "pg_settings") in pairwise(names)


def _is_own(tokens: Sequence[_Token], at: int) -> bool:
    """Return whether the function at `at` is PostgreSQL's, as far as its schema says."""
    return _text(tokens, at - 1) != "." or _name(tokens, at - 2) == "pg_catalog"


def _arguments(tokens: Sequence[_Token], at: int) -> list[list[_Token]]:
    """Return the tokens of each argument of a call, whose first begins at `at`."""
    arguments: list[list[_Token]] = [[]]
    depth = 1
    for token in tokens[at:]:
        if token.text in ("(", "["):
            depth += 1
        elif token.text in (")", "]"):
            depth -= 1
            if not depth:
                break
        if token.text == "," and depth == 1:
            arguments.append([])
        else:
            arguments[-1].append(token)
    return arguments


def _literal(argument: Sequence[_Token]) -> _Token | None:
    """Return the literal that an argument is, in parentheses or with a cast; None: it is more, or another thing."""
    match [token for token in argument if token.text not in ("(", ")")]:
        case [one] | [one, _Token(text="::"), *_] if "\\" not in one.text:
            return one
        case _:
            return None


def _value(literal: _Token | None) -> str:
    if literal is None:
        return ""
    return literal.text[1:-1].replace("''", "'").lower() if literal.kind == "plain" else literal.text.lower()


def _is_postgres(value: Sequence[_Token]) -> bool:
    return [token.name or _value(token) for token in value] == ["postgres"]


def _key(name: str) -> str:
    return _OLD_NAMES.get(name, name)


def _dotted(tokens: Sequence[_Token], at: int) -> tuple[str, int]:
    """Return the name of a setting that begins at `at`, and where the tokens after it begin."""
    parts = [_name(tokens, at)]
    at += 1
    while _text(tokens, at) == "." and _name(tokens, at + 1):
        parts.append(_name(tokens, at + 1))
        at += 2
    return _key(".".join(parts)), at


def _word(tokens: Sequence[_Token], at: int) -> str:
    return "".join(token.word for token in tokens[at : at + 1])


def _keyword(tokens: Sequence[_Token], at: int) -> str:
    """Return the keyword at `at`: no part of a setting's name, as in SET session.user = 1."""
    return "" if _text(tokens, at + 1) == "." else _word(tokens, at)


def _name(tokens: Sequence[_Token], at: int) -> str:
    return "".join(token.name for token in tokens[at : at + 1])


def _text(tokens: Sequence[_Token], at: int) -> str:
    return "".join(token.text for token in tokens[at : at + 1])


def _statements(tokens: Iterable[_Token]) -> list[list[_Token]]:
    statements: list[list[_Token]] = [[]]
    for token in tokens:
        if token.text == ";":
            statements.append([])
        else:
            statements[-1].append(token)
    return [statement for statement in statements if statement]


def _tokens(text: str, *, escapes: bool) -> Iterator[_Token]:
    """Yield the tokens of `text`, without blanks, comments and dollar-quoted strings."""
    at = 0
    pattern = _token(escapes=escapes)
    while match := pattern.match(text, at):
        kind, at = match.lastgroup or "", match.end()
        if kind == "comment":
            at = end_of_comment(text, at)
        elif kind == "dollar":
            end = text.find(match[0], at)
            at = len(text) if end < 0 else end + len(match[0])
        elif kind != "blank":
            yield _Token(kind, match[0], match.start(), at)


def read_savepoints(text: str) -> list[tuple[str, str]]:
    """Return what a text does to savepoints, in order: ("savepoint" | "release" | "rollback", name)."""
    done = []
    for statement in _statements(_tokens(text, escapes=False)):
        match [token.word for token in statement[:-1]]:
            case ["savepoint"]:
                what = "savepoint"
            case ["release", *_]:
                what = "release"
            case ["rollback" | "abort", *rest] if "to" in rest:
                what = "rollback"
            case _:
                continue
        name = statement[-1].identifier.encode()[:LONGEST_NAME].decode(errors="ignore")  # as PostgreSQL cuts it
        done.append((what, name))
    return done


def modes_named(text: str) -> tuple[str, ...]:
    """Return the modes of a transaction that a BEGIN names."""
    words = {token.word for token in _tokens(text, escapes=False)}
    named = {"transaction_isolation": "isolation", "transaction_read_only": "read", "transaction_deferrable": "deferrable"}
    return tuple(mode for mode, word in named.items() if word in words)
