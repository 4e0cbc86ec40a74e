"""The state of one endpoint in this process: how to open a transaction there, and what its server taught us."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final
from weakref import WeakValueDictionary

from ps_core._documentation import link
from ps_core._fork import renew_after_fork
from ps_core._message.functions import Functions
from ps_core._message.script import Script, Setting
from ps_core._retry.gate import OutageGate
from ps_core.context import current, remaining
from ps_core.timeouts import SETTINGS, format_ms

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping

    from ps_core._message.plan import Message
    from ps_core.topology import Endpoint

__all__ = ["EndpointState", "StatementMemory"]

_log: Final = logging.getLogger("ps_core.limits")
_log_of_sessions: Final = logging.getLogger("ps_core")


class StatementMemory:
    """A bounded memory of statement templates, oldest first out: what the server taught us that their text does not show."""

    def __init__(self, size: int = 1024, *, learn: Callable[[], None] | None = None) -> None:
        """`learn` is called behind each addition."""
        self._size = size
        self._learn = learn
        self._lock = threading.Lock()
        self._hashes: dict[int, None] = {}

    def __contains__(self, text: Hashable) -> bool:
        return bool(self._hashes) and hash(text) in self._hashes

    def __len__(self) -> int:
        return len(self._hashes)

    def forget_threads(self) -> None:
        """See `EndpointState.forget_threads`."""
        self._lock = threading.Lock()

    def add(self, text: Hashable) -> None:
        """Remember `text` (its hash: generated texts are long)."""
        with self._lock:
            self._hashes[hash(text)] = None
            if len(self._hashes) > self._size:
                del self._hashes[next(iter(self._hashes))]
        if self._learn is not None:
            self._learn()


_functions: Final[WeakValueDictionary[str, Functions]] = WeakValueDictionary()
"""Those of each branch."""
_warned: Final[set[str]] = set()
"""The branches whose `session_state` was warned of."""


@dataclass(slots=True, kw_only=True, eq=False, weakref_slot=True)
class EndpointState:
    """What the connections to one endpoint share: where it is, its outage gate, and what its server taught us."""

    endpoint: Endpoint
    gate: OutageGate = None  # type: ignore[assignment] # made below, of the endpoint's name
    """Shared with all that lead to the same server path (`ps_core._registry`)."""
    refused_read_only: StatementMemory = field(init=False)
    """Templates that look like reads and were refused READ ONLY."""
    refused_in_batch: StatementMemory = field(init=False)
    """Templates that the server refused to run in one message with others."""
    functions: Functions = field(init=False)
    """The names of the branch's functions that may write: what one of its endpoints reports, all know."""
    identity: str = ""
    """The branch, as tokens name it."""
    tracks: bool = False
    """Whether WAL positions are asked for and heeded here: there are replicas, and the server can tell."""
    on_primary: bool = False
    """It is the primary in the replicas' place: what was never a replica has all there is."""
    tracks_reads: bool = True
    """Whether a read brings its position, too, where any are asked for: reads then never go backwards."""
    role: dict[str, int] | None = None
    """The timeouts that the role has by itself (ALTER ROLE, ALTER DATABASE), in milliseconds; read with the first connection."""
    default_isolation: str = "read committed"
    """The isolation level that the role's transactions have by themselves; read with the first connection, too."""
    has_snapshot_each: bool = True
    """Whether at that level each statement has a snapshot of its own."""
    generation: int = 0
    """Connections of an earlier one are replaced before their next use: the server that they led to was demoted."""
    composed: tuple[int, dict[Hashable, Message]] = field(init=False)
    """Messages by all that decides them but for what the servers teach, and by how many lessons they were composed.

    `compose_anew` after another lesson. What is composed by what was known before so goes into what nobody looks into any more.
    """
    _openings: dict[int, Script] = field(default_factory=dict)
    _told: bool = False
    """Whether it was said that the role's own timeouts are shorter than what is asked for."""

    def __post_init__(self) -> None:
        self.functions = _functions.setdefault(self.identity, Functions()) if self.identity else Functions()
        self.refused_read_only = StatementMemory(learn=self.functions.learn)
        self.refused_in_batch = StatementMemory(learn=self.functions.learn)
        self.composed = self.functions.lessons, {}
        if self.gate is None:
            self.gate = OutageGate(self.endpoint.name)
        if self.endpoint.pooled and not self.endpoint.refuses_session:
            self._warn_of_sessions()
        renew_after_fork(self)

    def _warn_of_sessions(self) -> None:
        """Warn, once for each branch, of what `session_state="allow"` lets through."""
        endpoint = self.endpoint
        branch = self.identity or f"{endpoint.host}:{endpoint.port}/{endpoint.dbname}"
        if branch in _warned:
            return
        _warned.add(branch)
        _log_of_sessions.warning(
            'endpoint %r: session_state="allow" behind a transaction pooler: session advisory locks, LISTEN, temporary tables,'
            " cursors WITH HOLD, PREPARE and LOAD act on server connections that other clients get: use the direct endpoint for"
            ' them, and session_state="refuse": see %s',
            endpoint.name,
            link("explanation/limits", "what-only-a-session-could-keep"),
        )

    def forget_threads(self) -> None:
        """Begin with new locks: after a fork, the threads that held them are not there."""
        self.refused_read_only.forget_threads()
        self.refused_in_batch.forget_threads()

    def compose_anew(self) -> dict[Hashable, Message]:
        """Return `composed` messages of which there are none yet."""
        self.composed = self.functions.lessons, {}
        return self.composed[1]

    def opening(self, server_version: int) -> Script:
        """Return the SET LOCALs that open a transaction here and now, for a server of `server_version` (as in 180004).

        Raises:
            DeadlineExceeded: the caller's deadline is over.
        """
        if current().opening:
            return Script.set_local(self.settings(server_version))
        script = self._openings.get(server_version)
        if script is None:
            script = self._openings[server_version] = Script.set_local(self.settings(server_version))
        return script

    def settings(self, server_version: int, held: Mapping[str, float | None] | None = None) -> list[Setting]:
        """Return the same one by one.

        `held`: the timeouts that the session has set, by the fields of `Timeouts`. They replace the endpoint's and the role's.
        """
        context = current()
        own, role = self.endpoint.timeouts, self.role or {}
        if held:
            own = own.limited(held)
            role = {name: value for name, value in role.items() if name not in {SETTINGS[field] for field in held}}
        limits = dict(context.limits.values) if context.limits else {}
        wanted = own.limited(limits, remaining()).settings(server_version=server_version)
        if held and (whole := held.get("transaction")) is not None and limits.keys().isdisjoint(("statement", "transaction")):
            # One that was SET ends what takes longer, whatever the statement's is: PostgreSQL then does not heed that.
            wanted["transaction_timeout"] = format_ms(whole)
        # What was switched off is said, too: another client may have left something on the pooler's server connection.
        own_settings = self.endpoint.timeouts.settings(server_version=server_version)
        names = dict.fromkeys((*own_settings, *wanted, *(SETTINGS[field] for field in held or ())))
        if not self.endpoint.pooled:
            # The endpoint's own hold for the session, as startup options; but for this one, which servers before 17 refuse there.
            names = {name: None for name in names if name == "transaction_timeout" or wanted.get(name) != own_settings.get(name)}
        if limits and not self._told:
            self._tell_of_role(limits, role)
        settings = []
        if self.endpoint.assumed_role is not None:
            settings.append(Setting(b"role", b"'%s'" % self.endpoint.assumed_role.replace("'", "''").encode()))
        for name in names:
            ours, theirs = wanted.get(name, 0), role.get(name, 0)
            settings.append(Setting(name.encode(), b"'%d'" % (min(ours, theirs) if ours and theirs else ours or theirs)))
        return settings

    def _tell_of_role(self, limits: Mapping[str, float | None], role: Mapping[str, int]) -> None:
        """Warn, once, of what `limits()` asks for and the role's own timeout forbids."""
        if limits.get("statement", 0) != 0 and "transaction" not in limits:
            limits = {**limits, "transaction": limits["statement"]}  # which the whole transaction has to allow for
        for name, limit in limits.items():
            setting = SETTINGS[name]
            own = role.get(setting, 0)
            if own and (limit is None or format_ms(limit) > own):
                self._told = True
                _log.warning(
                    "endpoint %r: limits() asks for %s %s, and %s of the role ends it after %g s: write ALTER ROLE ... RESET %s,"
                    " or let this work connect with a role of its own: see %s",
                    self.endpoint.name,
                    setting,
                    "off" if limit is None else f"{limit:g} s",
                    setting,
                    own / 1000,
                    setting,
                    link("howto/timeouts", "for-a-report-a-job-a-command"),
                )
                return
