"""Random faults under load from both applications, and checks of what must never happen. Exit status 1: something did.

    python -m tests.soak [--minutes M] [--seed N] [--clients N] [--transport T] [--output DIR]

`make soak` does the set-up, too.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def arguments() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=_minutes, default=30.0, help="how long (0.1 to 1440; default 30)")
    parser.add_argument("--seed", type=int, default=1, help="of the faults and the clients' choices (default 1)")
    parser.add_argument("--clients", type=_clients, default=8, help="of each application (2 to 64; default 8)")
    parser.add_argument("--transport", choices=["tcp", "websocket"], help="what carries the connections (default tcp)")
    parser.add_argument(
        "--output", type=Path, default=Path("build/soak"), metavar="DIR", help="where the report goes (default build/soak)"
    )
    return parser


def _minutes(text: str) -> float:
    try:
        minutes = float(text)
    except ValueError:
        minutes = 0.0
    if not 0.1 <= minutes <= 1440:
        raise argparse.ArgumentTypeError(f"write a number of minutes from 0.1 to 1440, not {text!r}")
    return minutes


def _clients(text: str) -> int:
    if not text.isdecimal() or not 2 <= int(text) <= 64:
        raise argparse.ArgumentTypeError(f"write a whole number from 2 to 64, not {text!r}")
    return int(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Run it from the command line."""
    # Each application's process imports this module anew: what it has to import belongs to the application alone.
    from ps_demo.demo import exit_status
    from tests.soak.soak import run

    return exit_status(run, arguments().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
