"""Directives whose content is read from the code: a topology's settings, the rules of failures, the help of commands."""

from __future__ import annotations

import ast
import inspect
import os
import re
from contextlib import redirect_stdout, suppress
from io import StringIO
from typing import TYPE_CHECKING, Any, Final
from unittest.mock import patch

from docutils.nodes import table
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.docutils import SphinxDirective

from ps_cli.main import main
from ps_core import errors, failures
from ps_core.failures import Failure
from ps_core.timeouts import DIRECT, POOLED
from ps_core.topology import HTTPS_PORT, Topology, TopologySettings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from docutils.nodes import Node
    from sphinx.application import Sphinx

__all__ = ["Help", "Rules", "Settings", "setup"]

OTHERWISE: Final = {
    "commit_outcome_unknown": "`CommitOutcomeUnknown`, raised by this library",
    "lost_at_commit": "`LostAtCommit`, raised by this library",
    "demoted": "`Demoted`, raised by this library",
    "replica_behind": "`ReplicaBehind`: the guard that a read carried (22023), or a position that only the primary has",
    "not_on_replica": "`NotOnReplica`: transactions that are SERIALIZABLE by the session's own SET",
    "session_setting_refused": "`SessionSettingRefused`: the server no longer accepts what was SET for the session",
    "traffic_control": "any SQLSTATE with `[PGINSIGHTS] Traffic Control:`",
    "cluster_read_only": "any SQLSTATE with `invalid statement because cluster is read-only`",
    "connection_exception": "any other SQLSTATE of class 08 that ended the connection",
    "recovery_conflict": "40001 or 40P01 with `due to conflict with recovery`: a read on a replica",
    "recovery_conflict_fatal": "the same as FATAL: idle in a transaction on a replica",
    "statement_error": "everything else",
}
"""Rules that stand in the code, not in a table: what they are met by."""


class _Generated(SphinxDirective):
    """A directive that makes Markdown."""

    optional_arguments = 1
    final_argument_whitespace = True
    css_class = "generated"

    def run(self) -> list[Node]:
        """Return what the Markdown becomes, its tables with a class for `wide.css`."""
        nodes = self.parse_text_to_nodes(self.markdown())
        for found in (found for node in nodes for found in node.findall(table)):
            found["classes"].append(self.css_class)
        return nodes

    def markdown(self) -> str:
        """Return the text."""
        raise NotImplementedError


class Settings(_Generated):
    """The settings of a `Topology`: their names in the three forms, their defaults, and what they do."""

    css_class = "settings"

    def markdown(self) -> str:
        """Return the table."""
        documented = ModuleAnalyzer.for_module(TopologySettings.__module__).find_attr_docs()
        defaults = _defaults()
        return _table(
            ("setting", "default", "what it does"),
            (
                (
                    f"[`{name}`]{{#{name.replace('_', '-')}}} `ps_{name}` `PS_{name.upper()}`",
                    defaults[name],
                    PAGE.sub(r"{doc}`../\1`", MEANT.get(name) or " ".join(documented[("TopologySettings", name)])),
                )
                for name in TopologySettings.__annotations__
            ),
        )


PAGE: Final = re.compile(r"docs/([\w/-]+)\.md")
"""A page, as docstrings name it."""

MEANT: Final = {
    "statement_timeout": "How long one statement may run, on the primary and on replicas.",
    "transaction_timeout": "How long one transaction may take, on the primary and on replicas (PostgreSQL 17 and later).",
    "idle_in_transaction_timeout": "How long a transaction may wait for its next statement, on the primary and on replicas.",
    "connect_timeout": "How long one try to connect may take, for each address of the host.",
}
"""What the settings do that have one docstring together, or none."""


def _defaults() -> dict[str, str]:
    """Return the default of each setting: as the code has it, if that is a value."""
    topology = Topology.from_url("postgresql://app:secret@host.psdb.cloud/postgres")
    assert topology.replica_fallback == 1  # of the primary's pool
    return {
        "bouncer": "none",
        "replica_bouncer": "none",
        "replica_urls": "none",
        "replica_weights": "1 each",
        "replica_fallback": "`primary`",
        "direct_replica": "`false`",
        "direct_url": "none",
        "direct_port": f"{topology.direct.port}, or the URL's",
        "pooled_port": f"{topology.primary.port}, or the URL's",
        "transport": f"`{topology.primary.transport}`",
        "https_port": f"{HTTPS_PORT}",
        "binding": f"`{topology.primary.binding}`",
        "pooled": "by host and port",
        "session_state": f"`{topology.primary.session_state}`",
        "statement_timeout": f"{POOLED.statement:g} s",
        "transaction_timeout": f"{POOLED.transaction:g} s",
        "idle_in_transaction_timeout": f"{POOLED.idle_in_transaction:g} s",
        "lock_timeout": f"{DIRECT.lock:g} s",
        "connect_timeout": f"{POOLED.connect:g} s",
        "retry_timeout": f"{topology.retry_timeout:g} s",
        "consistency": f"`{topology.consistency}`",
        "application_name": "none",
        "marker_schema": f"`{topology.primary.marker_schema}`",
    }


class Rules(_Generated):
    """The rules by which failures are told apart, in the order of the code."""

    def markdown(self) -> str:
        """Return the table."""
        met_by: dict[str, list[str]] = {}
        for texts in (failures._MIDDLE_TEXTS, failures._CLIENT_TEXTS):
            for pattern, failure in texts:
                met_by.setdefault(failure.rule, []).extend(f"`` {part} ``" for part in _alternatives(pattern))
        for state, failure in failures._SQLSTATES.items():
            met_by.setdefault(failure.rule, []).append(f"SQLSTATE {state}")
        return _table(
            ("rule", "met by", "kind", "the statement", "the connection"),
            (
                (
                    f"[`{failure.rule}`]{{#{failure.rule.replace('_', '-')}}}",
                    ", ".join(met_by.get(failure.rule) or [OTHERWISE[failure.rule]]),
                    failure.kind.value,
                    RAN[failure.ran.value],
                    "goes on" if failure.usable else "is lost",
                )
                for failure in rules()
            ),
        )


RAN: Final = {"no": "did not run", "rolled back": "was rolled back", "committed": "was committed", "unknown": "may have run"}


def rules() -> Iterator[Failure]:
    """Yield each verdict that an error of ours carries or that `ps_core.failures` writes down, in a table or not, once."""
    own = [failure for name in errors.__all__ if (failure := getattr(getattr(errors, name), "failure", None)) is not None]
    yield from own
    seen = {failure.rule for failure in own}
    calls = [node for node in ast.walk(ast.parse(inspect.getsource(failures))) if isinstance(node, ast.Call)]
    for node in sorted(calls, key=lambda call: call.lineno):
        if isinstance(node.func, ast.Name) and node.func.id in ("_lost", "_alive"):
            failure = eval(compile(ast.Expression(node), "failures", "eval"), vars(failures))
            assert isinstance(failure, Failure)
            if failure.rule not in seen:
                seen.add(failure.rule)
                yield failure


def _alternatives(pattern: str) -> Iterator[str]:
    """Yield the alternatives of a regular expression, readably."""
    depth, part = 0, ""
    for character in pattern.replace("\\ ", " "):
        depth += (character == "(") - (character == ")")
        if character == "|" and not depth:
            yield part
            part = ""
        else:
            part += character
    yield part


class Help(_Generated):
    """What `ps-postgres ... --help` prints; the argument is what stands in the place of the dots."""

    def markdown(self) -> str:
        """Return it as a block."""
        printed = StringIO()
        with patch.dict(os.environ, COLUMNS="100"), redirect_stdout(printed), suppress(SystemExit):
            main([*(self.arguments[0].split() if self.arguments else ()), "--help"])
        return f"```text\n{printed.getvalue()}```\n"


def _table(head: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *((" ".join(cell.split()).replace("|", r"\|") for cell in row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.add_directive("topology-settings", Settings)
    app.add_directive("failure-rules", Rules)
    app.add_directive("command-help", Help)
    return {"parallel_read_safe": True}
