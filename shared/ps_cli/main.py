"""The command `ps-postgres`."""

from __future__ import annotations

import argparse
from importlib.metadata import version
from textwrap import fill, wrap
from typing import TYPE_CHECKING, Any, NoReturn

from ps_cli import completion, doctor, lab, pgbouncer
from ps_demo import demo

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]


class _Formatter(argparse.HelpFormatter):
    """Breaks no word at its hyphens: what is to be typed (`ps-postgres`) can be copied."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return wrap(text, width, break_on_hyphens=False)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return fill(text, width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)


class _Parser(argparse.ArgumentParser):
    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=_Formatter, **options)

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, without the arguments that it quotes where these may hold a password."""
        what, _, quoted = message.partition(": ")
        super().error(f"{what}: not shown, it may hold a password" if "://" in quoted or "=" in quoted else message)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the sub-command that the arguments (by default the process's) name; return the exit status."""
    parser = _Parser(prog="ps-postgres", description="SQLAlchemy and Django on PlanetScale for Postgres.")
    parser.add_argument("--version", action="version", version=f"ps-postgres {version('ps-postgres')}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in (demo, lab, doctor, pgbouncer):
        command.add_parser(subparsers)
    completion.add_parser(subparsers, parser)
    args = parser.parse_args(argv)
    status: int = args.run(args)
    return status
