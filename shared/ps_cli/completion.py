"""`ps-postgres completion`: the script by which a shell completes the command's words."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from importlib.util import find_spec
from typing import Any, Final

__all__ = ["add_parser", "run"]

SHELLS: Final = ("bash", "zsh", "fish", "tcsh")
FILES: Final = {"DIR": "DIRECTORY", "FILE": "FILE", "INI": "FILE"}
"""What stands in the help for a path, and shtab's name for what completes it."""


def add_parser(subparsers: argparse._SubParsersAction[Any], root: argparse.ArgumentParser) -> None:
    """Add the sub-command; `root` is the parser of the whole command."""
    parser = subparsers.add_parser(
        "completion",
        help="print the completion of a shell",
        description="Print the script that lets a shell complete this command. bash, in ~/.bashrc:"
        ' eval "$(ps-postgres completion bash)". zsh: ps-postgres completion zsh > FOLDER/_ps-postgres, where FOLDER is in fpath'
        " before compinit runs. fish: ps-postgres completion fish > ~/.config/fish/completions/ps-postgres.fish",
    )
    parser.add_argument("shell", choices=SHELLS, help="which one")
    parser.set_defaults(run=partial(run, root))


def run(root: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    """Print the script; return the exit status."""
    if find_spec("shtab") is None:
        print("shtab: not installed; pip install 'ps-postgres[cli]'", file=sys.stderr)
        return 2
    import shtab

    _complete_paths(root)
    print(shtab.complete(root, args.shell))
    return 0


def _complete_paths(parser: argparse.ArgumentParser) -> None:
    import shtab

    for action in parser._actions:  # where shtab reads them, too
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                _complete_paths(below)
        elif isinstance(action.metavar, str) and action.metavar in FILES:
            setattr(action, "complete", getattr(shtab, FILES[action.metavar]))  # noqa: B010 - argparse knows no such attribute
