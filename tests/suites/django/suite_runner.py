"""Django's test runner, which says what became of each test."""

import json
import os
import unittest
from pathlib import Path
from typing import Any

from django.db import connections
from django.test.runner import DiscoverRunner

from ps_django.backend.base import DatabaseWrapper
from ps_django.routers import ReplicaRouter

outcomes: dict[str, str] = {}


class Result(unittest.TextTestResult):
    """Notes each outcome; a failure stays one, whatever comes after it."""

    def note(self, test: Any, outcome: str) -> None:
        """Remember it."""
        if outcomes.get(test.id()) != "failed":
            outcomes[test.id()] = outcome

    def addSuccess(self, test: Any) -> None:  # noqa: N802 - unittest's name, as those below
        super().addSuccess(test)
        self.note(test, "passed")

    def addExpectedFailure(self, test: Any, err: Any) -> None:  # noqa: N802
        super().addExpectedFailure(test, err)
        self.note(test, "passed")

    def addSkip(self, test: Any, reason: str) -> None:  # noqa: N802
        super().addSkip(test, reason)
        self.note(test, "skipped")

    def addError(self, test: Any, err: Any) -> None:  # noqa: N802
        super().addError(test, err)
        self.note(test, "failed")

    def addFailure(self, test: Any, err: Any) -> None:  # noqa: N802
        super().addFailure(test, err)
        self.note(test, "failed")

    def addUnexpectedSuccess(self, test: Any) -> None:  # noqa: N802
        super().addUnexpectedSuccess(test)
        self.note(test, "failed")

    def addSubTest(self, test: Any, subtest: Any, err: Any) -> None:  # noqa: N802
        super().addSubTest(test, subtest, err)
        if err is not None:
            self.note(test, "failed")


class Runner(DiscoverRunner):
    """Writes the outcomes to SUITE_REPORT."""

    def get_resultclass(self) -> Any:
        return Result

    def run_suite(self, suite: Any, **kwargs: Any) -> Any:
        if isinstance(connections["default"], DatabaseWrapper):  # ours: with what `ReplicaRouter` changes of Django's ORM
            ReplicaRouter()
        result = super().run_suite(suite, **kwargs)
        Path(os.environ["SUITE_REPORT"]).write_text(json.dumps(outcomes))
        return result
