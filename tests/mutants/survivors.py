"""Mutants that no test has to notice, and why: by file, function or class, and what is changed."""

from typing import Final

# ruff: noqa: E501 - code is quoted as it stands

_STOP = "stop = stop | tenacity.stop_after_attempt(max(1, self.attempts + (not failed)))"
_PATIENCE = "if replicas is not None and state in replicas.out else min(RETRY_REPLICAS_FOR, bound_by_all / 2)"

SURVIVORS: Final[dict[tuple[str, str, str], str]] = {
    (
        "_message/functions.py",
        "is_due",
        "if now < self._due.get(endpoint, 0.0): => if now < self._due.get(endpoint, -1.0):",
    ): "The clock is never below 0.",
    ("_message/change.py", "_literal", "return None => pass"): "Without it, None is returned as well.",
    (
        "_message/change.py",
        "modes_named",
        "words = {token.word for token in _tokens(text, escapes=False)} => words = {token.word for token in _tokens(text, escapes=True)}",
    ): "What begins a transaction has no strings.",
    (
        "_message/change.py",
        "read_savepoints",
        "for statement in _statements(_tokens(text, escapes=False)): => for statement in _statements(_tokens(text, escapes=True)):",
    ): "What is said to savepoints has no strings.",
    ("_message/change.py", "_tokens", "at = 0 => at = -1"): "A pattern that is to match behind the beginning matches at it.",
    (
        "_message/change.py",
        "_tokens",
        "at = len(text) if end < 0 else end + len(match[0]) => at = len(text) if end < 1 else end + len(match[0])",
    ): "The end of a dollar quote is behind its beginning.",
    (
        "_message/change.py",
        "_tokens",
        "at = len(text) if end < 0 else end + len(match[0]) => at = len(text) if end <= 0 else end + len(match[0])",
    ): "The end of a dollar quote is behind its beginning.",
    (
        "_message/session.py",
        "split_list",
        'items, at, separator = [], 0, "," => items, at, separator = [], -1, ","',
    ): "A pattern that is to match behind the beginning matches at it.",
    (
        "_message/plan.py",
        "_leaving",
        "assert statement.leaves is not None => pass",
    ): "It is for the type checker.",
    ("_message/statement.py", "_leaves_of", "return None => pass"): "Without it, None is returned as well.",
    ("_message/script.py", "Script", "@staticmethod => "): "It is called on the class, where it makes no difference.",
    (
        "_message/script.py",
        "then",
        "longer = self._longer.get(parts[0]) => longer = self._longer.get(parts[ -1])",
    ): "There is one part: it is the first and the last.",
    (
        "_message/script.py",
        "then",
        "longer = self._longer[parts[0]] = Script(*self.parts, *parts) => longer = self._longer[parts[ -1]] = Script(*self.parts, *parts)",
    ): "There is one part: it is the first and the last.",
    (
        "_retry/policy.py",
        "loop_options",
        f"{_STOP} => {_STOP.replace('max(1,', 'max( 0,')}",
    ): "The loop asks after its first try at the earliest, which is more than none.",
    (
        "_retry/deadline.py",
        "_give_up",
        "def _give_up(self) -> None: ... => def _give_up(self) -> None: pass",
    ): "Of a protocol, nothing is called.",
    (
        "_retry/deadline.py",
        "_goes_on",
        "def _goes_on(self) -> bool: ... => def _goes_on(self) -> bool: pass",
    ): "Of a protocol, nothing is called.",
    (
        "_retry/deadline.py",
        "_is_in_flight",
        "def _is_in_flight(self) -> bool: ... => def _is_in_flight(self) -> bool: pass",
    ): "Of a protocol, nothing is called.",
    (
        "_retry/attempts.py",
        "__init__",
        f"patience = 0.0 {_PATIENCE} => patience = -1.0 {_PATIENCE}",
    ): "Patience that is over is over, however long.",
    (
        "_retry/attempts.py",
        "_wait",
        "if self.state is fallback or (left <= 0 and self._hurried): => if self.state is fallback or (left <= 1 and self._hurried):",
    ): "It was hurried only once nothing was left, and time does not come back.",
    (
        "_message/statement.py",
        "_without_opaque_parts",
        'at = len(text) if end < 0 else end + len(match["dollar"]) => at = len(text) if end < 1 else end + len(match["dollar"])',
    ): "What ends it stands behind what began it, never at 0.",
    (
        "_message/statement.py",
        "_without_opaque_parts",
        'at = len(text) if end < 0 else end + len(match["dollar"]) => at = len(text) if end <= 0 else end + len(match["dollar"])',
    ): "What ends it stands behind what began it, never at 0.",
    (
        "_message/statement.py",
        "analyse",
        "return _analyse(text) if len(text) > _CACHED_LENGTH else _remembered(text) => return _analyse(text) if len(text) < _CACHED_LENGTH else _remembered(text)",
    ): "The answer is the same, remembered or not.",
    (
        "_message/statement.py",
        "analyse",
        "return _analyse(text) if len(text) > _CACHED_LENGTH else _remembered(text) => return _analyse(text) if len(text) >= _CACHED_LENGTH else _remembered(text)",
    ): "The answer is the same, remembered or not.",
    (
        "_message/statement.py",
        "analyse",
        "return _analyse(text) if len(text) > _CACHED_LENGTH else _remembered(text) => return _analyse(text) if not len(text) > _CACHED_LENGTH else _remembered(text)",
    ): "The answer is the same, remembered or not.",
    (
        "_message/statement.py",
        "module",
        "_known_to_be_plain = lru_cache(maxsize=1024)(_is_plain) => _known_to_be_plain = lru_cache(maxsize= 1023)(_is_plain)",
    ): "The answer is the same, remembered or not.",
    (
        "_message/statement.py",
        "module",
        "_remembered = lru_cache(maxsize=1024)(_analyse) => _remembered = lru_cache(maxsize= 1023)(_analyse)",
    ): "The answer is the same, remembered or not.",
    (
        "_message/statement.py",
        "module",
        "_known_to_be_plain = lru_cache(maxsize=1024)(_is_plain) => _known_to_be_plain = lru_cache(maxsize= 1025)(_is_plain)",
    ): "The answer is the same, remembered or not.",
    (
        "_message/statement.py",
        "module",
        "_remembered = lru_cache(maxsize=1024)(_analyse) => _remembered = lru_cache(maxsize= 1025)(_analyse)",
    ): "The answer is the same, remembered or not.",
    (
        "_message/statement.py",
        "module",
        "_CACHED_LENGTH = 16_384 => _CACHED_LENGTH = 16383",
    ): "The answer is the same, remembered or not.",
    (
        "_message/statement.py",
        "module",
        "_CACHED_LENGTH = 16_384 => _CACHED_LENGTH = 16385",
    ): "The answer is the same, remembered or not.",
    (
        "_retry/gate.py",
        "aturn",
        "async with asyncio.timeout(max(0.0, until - self._clock())): => async with asyncio.timeout(max( -1.0, until - self._clock())):",
    ): "Time that is over is over: below 0 it ends at once, as at 0.",
    (
        "_retry/gate.py",
        "turn",
        "has_place = ticket.answer.result(max(0.0, until - self._clock())) => has_place = ticket.answer.result(max( -1.0, until - self._clock()))",
    ): "Time that is over is over: below 0 it ends at once, as at 0.",
    (
        "_message/statement.py",
        "binds_outside_quotes",
        "return _is_plain(template) if len(template) > _CACHED_LENGTH else _known_to_be_plain(template) => return _is_plain(template) if len(template) < _CACHED_LENGTH else _known_to_be_plain(template)",
    ): "The answer is the same, remembered or not.",
    (
        "_message/statement.py",
        "binds_outside_quotes",
        "return _is_plain(template) if len(template) > _CACHED_LENGTH else _known_to_be_plain(template) => return _is_plain(template) if len(template) >= _CACHED_LENGTH else _known_to_be_plain(template)",
    ): "The answer is the same, remembered or not.",
    (
        "_message/statement.py",
        "binds_outside_quotes",
        "return _is_plain(template) if len(template) > _CACHED_LENGTH else _known_to_be_plain(template) => return _is_plain(template) if not len(template) > _CACHED_LENGTH else _known_to_be_plain(template)",
    ): "The answer is the same, remembered or not.",
    (
        "_message/commit.py",
        "transaction_id",
        "return TransactionId.of([None if value is None else bytes(value).decode() for value in values]) => pass",
    ): "It reads a result of libpq's, which only a server makes: tests/ps_core/test_writes.py and the lookups of tests/adversity notice.",
    (
        "_message/commit.py",
        "transaction_id",
        "return TransactionId.of([None if value is None else bytes(value).decode() for value in values]) => return TransactionId.of([None if not value is None else bytes(value).decode() for value in values])",
    ): "It reads a result of libpq's, which only a server makes: tests/ps_core/test_writes.py and the lookups of tests/adversity notice.",
    (
        "_message/commit.py",
        "transaction_id",
        "return TransactionId.of([None if value is None else bytes(value).decode() for value in values]) => return TransactionId.of([None if value is not None else bytes(value).decode() for value in values])",
    ): "It reads a result of libpq's, which only a server makes: tests/ps_core/test_writes.py and the lookups of tests/adversity notice.",
    (
        "_message/commit.py",
        "transaction_id",
        "values = [result.get_value(0, column) for column in range(result.nfields)] => pass",
    ): "It reads a result of libpq's, which only a server makes: tests/ps_core/test_writes.py and the lookups of tests/adversity notice.",
    (
        "_message/commit.py",
        "transaction_id",
        "values = [result.get_value(0, column) for column in range(result.nfields)] => values = [result.get_value( -1, column) for column in range(result.nfields)]",
    ): "It reads a result of libpq's, which only a server makes: tests/ps_core/test_writes.py and the lookups of tests/adversity notice.",
    (
        "_message/commit.py",
        "transaction_id",
        "values = [result.get_value(0, column) for column in range(result.nfields)] => values = [result.get_value( 1, column) for column in range(result.nfields)]",
    ): "It reads a result of libpq's, which only a server makes: tests/ps_core/test_writes.py and the lookups of tests/adversity notice.",
    (
        "_message/commit.py",
        "read_ending",
        "synchronous_commit = told.row[0] => synchronous_commit = told.row[ -1]",
    ): "The row has one column: it is the first and the last.",
    ("_retry/gate.py", "__init__", "renew_after_fork(self) => pass"): "A fork notices: tests/ps_core/test_registry.py.",
    (
        "_message/commit.py",
        "read_ending",
        "return Ended(outcome=Outcome.ROLLED_BACK, position=_position(answers)) => pass",
    ): "What follows reads the same from the tag.",
    ("routing.py", "_no", "return False => pass"): "None is as false.",
    ("_propagation.py", "_demanded", "assert token is not None => pass"): "It is for the type checker.",
    (
        "_propagation.py",
        "inject",
        "first = int(unique, 16) % max(len(covered), 1) => first = int(unique, 16) % max(len(covered), 2)",
    ): "One cookie comes first wherever it is begun.",
    (
        "_message/commit.py",
        "judge_replies",
        'if len(replies) > at and replies[at].row[0] == "t": => if len(replies) > at and replies[at].row[ -1] == "t":',
    ): "The row has one column: it is the first and the last.",
}
