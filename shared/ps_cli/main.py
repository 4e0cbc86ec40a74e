"""The command `ps-postgres`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ps_cli import demo, lab

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the sub-command that the arguments (by default the process's) name; return the exit status."""
    parser = argparse.ArgumentParser(prog="ps-postgres", description="SQLAlchemy and Django on PlanetScale for Postgres.")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in (demo, lab):
        command.add_parser(subparsers)
    args = parser.parse_args(argv)
    status: int = args.run(args)
    return status
