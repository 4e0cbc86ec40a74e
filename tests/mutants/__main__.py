"""`make mutants`: change one thing in what decides, and see whether a test notices.

Cosmic Ray makes the mutants. Running them is done here: it starts a process for each and changes the file in place, which takes
long, and leaves a changed file behind if it is interrupted. Here a process that has collected the tests forks, and the child
runs them with the changed code in its functions; what runs at import is imported by a process that has not done so yet.

mutmut, which forks as well, leaves out every decorated function: the properties of `Plan`, which say what may be sent again.
"""

from __future__ import annotations

import argparse
import ast
import gc
import os
import re
import sys
import time
from collections import Counter
from dataclasses import dataclass
from functools import _lru_cache_wrapper, cache, partial
from importlib.abc import Loader, MetaPathFinder
from importlib.util import spec_from_loader
from inspect import CO_OPTIMIZED
from itertools import zip_longest
from pathlib import Path
from signal import SIGKILL
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Any

# Imported before the fork, so that no child does it: everything that does not import what is changed.
import pytest
import tenacity.asyncio  # noqa: F401
from cosmic_ray.ast import ast_nodes, get_ast_from_path
from cosmic_ray.ast.ast_query import ASTQuery
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

from tests.mutants.operators import OURS
from tests.mutants.survivors import SURVIVORS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

ROOT = Path(__file__).parents[2]
CORE = ROOT / "shared" / "ps_core"
DOCUMENT = ROOT / "docs" / "generated" / "mutants.md"
TESTS = ROOT / "tests" / "ps_core"

MODULES = {
    "_message/plan.py": ("test_plan.py", "test_replay.py"),
    "_message/replay.py": ("test_replay.py",),
    "_message/statement.py": ("test_statement.py", "test_plan.py"),
    "_message/functions.py": ("test_functions.py",),
    "_message/script.py": ("test_script.py",),
    "_message/commit.py": ("test_commit.py",),
    "_message/change.py": ("test_change.py",),
    "_message/session.py": ("test_session.py",),
    "routing.py": ("test_routing.py",),
    "_propagation.py": ("test_propagation.py",),
    "_retry/policy.py": ("test_policy.py", "test_retry.py"),
    "_retry/deadline.py": ("test_deadline.py",),
    "_retry/attempts.py": ("test_attempts.py",),
    "_retry/gate.py": ("test_gate.py", "test_retry.py"),
}
"""What is changed, and the files of tests that hold it. Every file of `_message` and `_retry` is here."""

SECONDS = 20
"""After which a mutant counts as noticed: its tests take two seconds at most."""

_COMPARISONS = {
    *(
        "Eq_NotEq",
        "NotEq_Eq",
        "Lt_LtE",
        "Lt_Gt",
        "LtE_Lt",
        "LtE_GtE",
        "Gt_GtE",
        "Gt_Lt",
        "GtE_Gt",
        "GtE_LtE",
        "Is_IsNot",
        "IsNot_Is",
    ),
}
_BINARY = {"Add_Sub", "Sub_Add", "Mul_Div", "Div_Mul", "BitOr_BitAnd", "BitAnd_BitOr"}


@dataclass(frozen=True, slots=True)
class Mutant:
    """One change of one file."""

    file: str
    where: str
    """Function or class."""
    before: str
    after: str
    """The changed lines."""
    code: str

    @property
    def change(self) -> str:
        """What is changed, as `survivors.py` names it."""
        return f"{self.before} => {self.after}"


def main() -> int:
    """Run them all, write the page, and return 1 where one survives for which no reason is given."""
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    parser = argparse.ArgumentParser(prog="make mutants", description=__doc__)
    parser.add_argument("--only", default="", help="run those of files whose name has this")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    files = [file for file, tests in MODULES.items() if options.only in file and all((TESTS / name).exists() for name in tests)]
    missing = {str(file.relative_to(CORE)) for room in ("_message", "_retry") for file in CORE.glob(f"{room}/[!_]*.py")} - {
        *MODULES
    }
    if missing:
        sys.exit(f"MODULES does not name {', '.join(sorted(missing))}")
    as_it_is = [Mutant(file, "", "", "", (CORE / file).read_text()) for file in files]
    for whole, failed in _each(as_it_is, _import_and_test, options.jobs):
        if failed:
            sys.exit(f"the tests of {whole.file} fail as it is")
    began = time.monotonic()
    survivors: list[Mutant] = []
    made: Counter[str] = Counter()
    for mutant, noticed in _run([mutant for file in files for mutant in mutants_of(file)], options.jobs):
        made[mutant.file] += 1
        if not noticed:
            survivors.append(mutant)
    survivors.sort(key=lambda mutant: (files.index(mutant.file), mutant.where, mutant.change))
    unexplained = [mutant for mutant in survivors if _reason(mutant) is None]
    for mutant in unexplained:
        print(f"survives: {mutant.file}: {mutant.where}\n    {mutant.before}\n    {mutant.after}")
    names = {(mutant.file, mutant.where, mutant.change) for mutant in survivors}
    stale = [name for name in SURVIVORS if name[0] in files and name not in names]
    for file, where, change in stale:
        print(f"does not survive any more: {file}: {where}: {change}")
    for file, name in _untested().items():
        print(f"not run: {file}, which has no {name}")
    print(f"{made.total()} mutants, {made.total() - len(survivors)} killed, in {time.monotonic() - began:.0f} s")
    if unexplained or stale:
        return 1
    DOCUMENT.write_text(_page(made, survivors))
    return 0


def _reason(mutant: Mutant) -> str | None:
    return SURVIVORS.get((mutant.file, mutant.where, mutant.change))


def mutants_of(file: str) -> Iterator[Mutant]:
    """Yield every mutant of a file."""
    path = CORE / file
    source = path.read_text()
    idle = _idle_parts(source)
    seen = set()
    for operator in _operators():
        nodes = ((node, place) for node in ast_nodes(get_ast_from_path(path)) for place in operator.mutation_positions(node))
        for occurrence, (node, (start, _)) in enumerate(nodes):
            is_star = node.type == "operator" and node.parent.type in ("parameters", "param", "arglist", "argument")
            if is_star or any(begin <= start < end for begin, end in idle):
                continue
            code = mutate_code(source, operator, occurrence)
            if code is None or code in seen or not _compiles(code):
                continue
            seen.add(code)
            before, after = _difference(source, code)
            yield Mutant(file, ASTQuery(node).get_definition_name() or "module", before, after, code)


def _compiles(code: str) -> bool:
    try:
        compile(code, "mutant", "exec", dont_inherit=True)
    except SyntaxError:
        return False
    return True


def _difference(source: str, code: str) -> tuple[str, str]:
    old, new = source.splitlines(), code.splitlines()
    while old and new and old[0] == new[0]:
        del old[0], new[0]
    while old and new and old[-1] == new[-1]:
        del old[-1], new[-1]
    return tuple(" ".join(" ".join(lines).split()) for lines in (old, new))  # type: ignore[return-value]


@cache
def _operators() -> Sequence[Any]:
    found = []
    for name in operator_names():
        short = name.partition("/")[2]
        kind, _, change = short.partition("_")
        if (
            (kind == "ReplaceComparisonOperator" and change not in _COMPARISONS)
            or (kind == "ReplaceBinaryOperator" and change not in _BINARY)
            or short.startswith(("Variable", "ExceptionReplacer"))
        ):
            continue
        found.append(get_operator(name)())
    return [*found, *(operator() for operator in OURS)]


def _idle_parts(source: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Return what no test can tell: annotations, what only type checkers run, the arguments of `dataclass`."""
    found: list[ast.AST] = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.AnnAssign(annotation=annotation) | ast.arg(annotation=ast.AST() as annotation):
                found.append(annotation)
            case ast.FunctionDef(returns=ast.AST() as returns) | ast.AsyncFunctionDef(returns=ast.AST() as returns):
                found.append(returns)
            case ast.If(test=ast.Name(id="TYPE_CHECKING")) | ast.Call(func=ast.Name(id="dataclass")):
                found.append(node)
    return [((node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset)) for node in found]  # type: ignore[attr-defined]


def _run(mutants: list[Mutant], jobs: int) -> Iterator[tuple[Mutant, bool]]:
    """Yield each mutant, and whether a test noticed it."""
    # What runs at import (a constant, a default, a decorator) needs an interpreter that has not imported it.
    changed = {mutant: _changed_functions(mutant) for mutant in mutants}
    yield from _each([mutant for mutant in mutants if not changed[mutant]], _import_and_test, jobs)
    # The others are put into functions that are there, by processes that have collected the tests.
    rest = [mutant for mutant in mutants if changed[mutant]]
    loop = _Loop(lambda test: list(_each(rest, lambda mutant: _exchange_and_test(mutant, changed[mutant], test), jobs)))
    if rest:
        pytest.main(
            [*_OPTIONS, "-s", *sorted({str(TESTS / test) for mutant in rest for test in MODULES[mutant.file]})], plugins=[loop]
        )
    yield from loop.found


def _each(mutants: list[Mutant], test: Callable[[Mutant], int], jobs: int) -> Iterator[tuple[Mutant, bool]]:
    """Yield each mutant, and whether `test`, in a process of its own, returned anything but 0."""
    running: dict[int, tuple[Mutant, float]] = {}
    waiting = mutants[::-1]
    while waiting or running:
        while waiting and len(running) < jobs:
            mutant = waiting.pop()
            running[_fork(partial(test, mutant))] = mutant, time.monotonic() + SECONDS
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            yield running.pop(pid)[0], status != 0
            continue
        for pid, (_, until) in running.items():
            if time.monotonic() > until:
                os.kill(pid, SIGKILL)
        time.sleep(0.005)


def _fork(test: Callable[[], int]) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        silence = os.open(os.devnull, os.O_RDWR)
        for stream in range(3):
            os.dup2(silence, stream)
        status = test()
    finally:  # whatever was raised, it was noticed
        os._exit(status)


def _import_and_test(mutant: Mutant) -> int:
    """Return the status of the tests, with the mutant imported in place of its file."""
    name = ".".join(("ps_core", *Path(mutant.file).with_suffix("").parts))
    sys.meta_path.insert(0, _Instead(name, CORE / mutant.file, mutant.code))
    return int(pytest.main([*_OPTIONS, *(str(TESTS / name) for name in MODULES[mutant.file])]))


def _exchange_and_test(mutant: Mutant, changed: dict[str, CodeType], test: Callable[[str], int]) -> int:
    """Return the status of the tests, with changed code in the functions that are there."""
    exchanged = set()
    for found in gc.get_objects():
        if isinstance(found, FunctionType) and found.__code__.co_filename == str(CORE / mutant.file):
            code = changed.get(found.__code__.co_qualname)
            if code is not None:
                exchanged.add(found.__code__.co_qualname)
                found.__code__ = code
        elif isinstance(found, _lru_cache_wrapper):
            found.cache_clear()
    if exchanged != {*changed}:
        return 0  # it would be said to survive: somebody looks
    return test(mutant.file)


def _changed_functions(mutant: Mutant) -> dict[str, CodeType]:
    """Return the code of the functions that a mutant changes, by qualified name; none where it changes what runs at import."""
    path = CORE / mutant.file
    old, new = (compile(code, str(path), "exec", dont_inherit=True) for code in (path.read_text(), mutant.code))
    if _at_import(old) != _at_import(new):
        return {}
    before = dict(_functions(old))
    return {name: code for name, code in _functions(new) if code != before[name]}


def _functions(code: CodeType) -> Iterator[tuple[str, CodeType]]:
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            if inner.co_flags & CO_OPTIMIZED:
                yield inner.co_qualname, inner
            else:  # the body of a class
                yield from _functions(inner)


def _at_import(code: CodeType) -> tuple[object, ...]:
    consts = [
        (type(inner), inner) if not isinstance(inner, CodeType) else None if inner.co_flags & CO_OPTIMIZED else _at_import(inner)
        for inner in code.co_consts
        if not isinstance(inner, int)  # the lines where classes begin
    ]
    return (code.co_code, code.co_names, consts)


class _Loop:
    """In place of pytest's loop, once the tests are collected: runs `run` with what runs the tests of one file."""

    def __init__(self, run: Callable[[Callable[[str], int]], list[tuple[Mutant, bool]]]) -> None:
        self._run = run
        self.found: list[tuple[Mutant, bool]] = []

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Run."""

        def test(file: str) -> int:
            order = {name: at for at, name in enumerate(MODULES[file])}
            session.items = sorted(
                (item for item in session.items if item.path.name in order), key=lambda it: order[it.path.name]
            )
            for item, following in zip_longest(session.items, session.items[1:]):
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
                if session.testsfailed:
                    return 1
            return 0 if session.items else 1

        self.found = self._run(test)
        return True


_OPTIONS = (
    *("-x", "-q", "--no-header", "--noconftest", "--tb=line", f"--rootdir={ROOT}", "-m", "fast", "-k", "not bounded"),
    *("-c", str(Path(__file__).with_name("pytest.ini")), "-p", "pytest_asyncio.plugin", "-p", "pytest_timeout"),
)


class _Instead(MetaPathFinder, Loader):
    """Finds one module, with other code than its file has."""

    def __init__(self, name: str, path: Path, code: str) -> None:
        self.name, self.path, self.code = name, path, code

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """Return the module's, if it is the one."""
        return spec_from_loader(fullname, self, origin=str(self.path)) if fullname == self.name else None

    def exec_module(self, module: ModuleType) -> None:
        """Run the other code."""
        exec(compile(self.code, str(self.path), "exec"), module.__dict__)


def _page(made: Counter[str], survivors: list[Mutant]) -> str:
    """Return the page; what it says of files that were not run stays."""
    alive = Counter(mutant.file for mutant in survivors)
    rows = {file: f"| `{file}` | {count} | {count - alive[file]} | {alive[file]} |" for file, count in made.items()}
    reasons = {
        file: [
            f"| `{file}`: `{one.where}` | {_code(one.before)} → {_code(one.after)} | {_reason(one)} |"
            for one in survivors
            if one.file == file
        ]
        for file in made
    }
    for line in DOCUMENT.read_text().splitlines() if DOCUMENT.exists() else ():
        if (known := _LINE.match(line)) and known[1] in MODULES and known[1] not in made:
            if known[2]:
                reasons.setdefault(known[1], []).append(line)
            else:
                rows[known[1]] = line
    counted = [[int(number) for number in row.split("|")[2:5]] for row in rows.values()]
    return "\n".join(
        [
            "# Mutants",
            "",
            "What decides is changed in one place at a time, and the tests that need no server run on it: `make mutants`.",
            "Each change that no test notices is listed, with the reason why none has to. Cosmic Ray makes the changes;",
            "three kinds of ours are added: a statement left out, a `return` that says the opposite, `in` for `not in`.",
            "",
            "| module | mutants | killed | survived |",
            "|---|---:|---:|---:|",
            *(rows[file] for file in MODULES if file in rows),
            "| all | {} | {} | {} |".format(*map(sum, zip(*counted, strict=True))),
            "",
            *(f"`{file}` is not run: it has no {name}.\n" for file, name in _untested().items()),
            "## Survivors",
            "",
            "| where | changed | why no test has to notice |",
            "|---|---|---|",
            *(line for file in MODULES for line in reasons.get(file, ())),
            "",
        ]
    )


def _untested() -> dict[str, str]:
    """Return the files for which there are no tests without a server, and what these would be called."""
    return {
        file: name for file, names in MODULES.items() if (CORE / file).exists() for name in names if not (TESTS / name).exists()
    }


_LINE = re.compile(r"\| `([^`]+)`(:)? ")


def _code(text: str) -> str:
    return f"`` {text.replace('|', chr(92) + '|')} ``" if text else "nothing"


if __name__ == "__main__":
    sys.exit(main())
