"""The notes on errors that a limit of ours caused: which one, its value, of which endpoint, where it is set, how to raise it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from ps_core._documentation import PREFIX
from ps_core.failures import classify
from ps_core.timeouts import SETTINGS, format_ms

if TYPE_CHECKING:
    from collections.abc import Mapping

    import psycopg

    from ps_core.timeouts import Timeouts

__all__ = ["InForce", "carry_notes", "deadline_note", "limit_note", "limit_of", "reads_note"]

_RULES: Final = {
    "query_canceled": "statement",
    "transaction_timeout": "transaction",
    "idle_in_transaction_timeout": "idle_in_transaction",
    "lock_not_available": "lock",
}
_TEXTS: Final = {"statement": "statement timeout", "lock": "lock timeout"}
"""SQLSTATEs that are not a limit's alone: a user cancels (57014), NOWAIT does not wait (55P03)."""
_DEADLINE: Final = (
    "`ps_core.deadline(...)`, `deadline=` of the WSGI and ASGI middleware or Django's setting PS_DJANGO['DEADLINE'] sets it:"
    " give that block more time"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class InForce:
    """What was in force when the transaction was opened."""

    endpoint: str
    """Its name."""
    timeouts: Timeouts
    """The endpoint's own."""
    limits: Mapping[str, float | None] = field(default_factory=dict)
    """Those of `limits()`, by field name."""
    role: Mapping[str, int] = field(default_factory=dict)
    """The role's own, in milliseconds by PostgreSQL's names."""
    deadline: float | None = None
    """The deadline's seconds, as they were given."""
    remaining: float | None = None
    """The seconds that were left of it."""
    text: str = ""
    """The statements of the transaction that name a timeout: they may have set one."""


def limit_of(error: psycopg.Error) -> str | None:
    """Return which limit ended it, as a field of `Timeouts`; None: none did, or a user."""
    name = _RULES.get(classify(error).rule)
    return name if name is None or _TEXTS.get(name, "") in str(error) else None


def limit_note(name: str, held: InForce) -> str | None:
    """Return what to say of the limit `name` (a field of `Timeouts`); None where it is not known to be one of ours or the role's.

    There is no secret in it: names of settings, of the endpoint, and durations.
    """
    setting, text = SETTINGS[name], held.text.lower()
    if setting in text:
        return None  # the transaction's own
    left = None if held.remaining is None else max(held.remaining, 0.001)
    base = held.timeouts.limited(held.limits)
    wanted = getattr(held.timeouts.limited(held.limits, left), name)
    ours, role = 0 if wanted is None else format_ms(wanted), held.role.get(setting, 0)
    where = f"the endpoint {held.endpoint!r}"
    raising = f'`with ps_core.limits({name}="...")` raises it for a block'
    if name == "transaction":
        raising += ", and `limits(statement=...)` alone turns it off there"
    if role and (not ours or role < ours):
        said = (
            f"{setting} of {_seconds(role)} ended this on {where}. The role has it by itself (ALTER ROLE ... SET), and limits()"
            f" cannot raise it: write ALTER ROLE ... RESET {setting}, or connect with another role"
        )
    elif not ours:
        return None
    elif name == "statement" and held.remaining is not None and (base.statement is None or held.remaining < base.statement):
        given = "" if held.deadline is None else f" of {held.deadline:g} s"
        said = f"the deadline{given} ended this on {where}: {setting} was the {_seconds(ours)} that were left of it. {_DEADLINE}"
    elif held.limits.get(name) is not None:
        said = (
            f"{setting} of {_seconds(ours)} ended this on {where}."
            f' `limits({name}="{ours / 1000:g}s")` (or a statement\'s option ps_limits) set it for this block: write more there'
        )
    else:
        key = f"{name}_timeout"
        said = (
            f"{setting} of {_seconds(ours)} ended this on {where}. The setting {key} says so: a keyword, ps_{key} in a URL,"
            f" PS_{key.upper()} in the environment, ps_{key} in the OPTIONS of DATABASES, PS_DJANGO['COMMAND_LIMITS'] for a"
            f" management command; {raising}"
        )
    if name == "transaction" and SETTINGS["statement"] in text:
        said += ". It bounds the whole transaction, whose own SET of statement_timeout does not raise it"
    return PREFIX + said


def deadline_note(seconds: float | None) -> str:
    """Return what to say where a deadline of these seconds ended a wait."""
    given = "" if seconds is None else f" of {seconds:g} s"
    return f"{PREFIX}the deadline{given} ended this. {_DEADLINE}"


def reads_note(endpoint: str) -> str:
    """Return what to say where a statement that writes was given to an endpoint for reads."""
    return (
        f"{PREFIX}the endpoint {endpoint!r} only reads, and this statement writes: run it on the primary (SQLAlchemy's engine or"
        " session, Django's alias of the primary)"
    )


def carry_notes(error: BaseException | None, wrapper: BaseException) -> None:
    """Note on what wraps a driver's error what our notes on that say: a framework's log shows its own error."""
    known = getattr(wrapper, "__notes__", ())
    for note in getattr(error, "__notes__", ()):
        if note.startswith(PREFIX) and note not in known:
            wrapper.add_note(note)


def _seconds(milliseconds: int) -> str:
    return f"{milliseconds / 1000:g} s"
