"""`ps-postgres doctor`: check one connection set-up, and explain what is wrong with it."""

from __future__ import annotations

import argparse
import ipaddress
import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ps_core.pgbouncer import DEFAULT_POOL_SIZE, MAX_CLIENT_CONN

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ps_cli._doctor.seen import Load, PathSeen, Setup

__all__ = ["add_parser", "run"]

ASSUMED: Final = {"max_client_conn": MAX_CLIENT_CONN, "default_pool_size": DEFAULT_POOL_SIZE}
"""PlanetScale's defaults of each PgBouncer: https://planetscale.com/docs/postgres/connecting/pgbouncer."""
_OPTIONS: Final = ("bouncer", "replica_bouncer", "replica_urls", "direct_url")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the sub-command."""
    parser = subparsers.add_parser(
        "doctor",
        help="check a connection set-up",
        description="Follow each path of a set-up (primary, replicas, direct) and say what is wrong, and what to do. Changes"
        " nothing on the server. Exit status: 0 good, 1 warnings, 2 errors. A URL on the command line is seen by whoever can"
        " list processes: --env does without.",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("url", nargs="?", metavar="URL", help="a role's URL, with its ps_* parameters")
    source.add_argument("--env", action="store_true", help="PS_URL or DATABASE_URL, and PS_*")
    source.add_argument("--django", metavar="SETTINGS", help="DATABASES of a settings module, as in mysite.settings")
    source.add_argument("--engine", metavar="MODULE:ATTRIBUTE", help="a SQLAlchemy engine, as in app.db:engine")
    for name in _OPTIONS:
        parser.add_argument(f"--{name.replace('_', '-')}", metavar="X", help=f"as ps_{name} in the URL (with URL or --env)")
    parser.add_argument("--workers", type=_number, metavar="N", help="processes of the application, to check the caps")
    parser.add_argument("--pool-size", type=_number, metavar="N", help="connections of a worker, overflow included")
    for name, value in ASSUMED.items():
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=_number, metavar="N", help=f"of the path's bouncers together (default {value})"
        )
    parser.add_argument(
        "--resolve", type=_resolve, action="append", metavar="HOST=ADDRESS", help="take this for a host's address"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON")
    form.add_argument("--svg", type=_picture, metavar="FILE", help="also write what is printed as a picture")
    form.add_argument(
        "--probe-443",
        action="store_true",
        help="instead, ask the branch what is not known of SQL over port 443, for an issue; says first what it sends",
    )
    parser.set_defaults(run=run)


def _number(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError("write a whole number from 1 on")
    return int(text)


def _resolve(text: str) -> tuple[str, str]:
    host, _, address = text.partition("=")
    try:
        return host, str(ipaddress.ip_address(address))
    except ValueError:
        raise argparse.ArgumentTypeError("write HOST=ADDRESS, the address in numbers") from None


def _picture(text: str) -> Path:
    path = Path(text)
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise argparse.ArgumentTypeError("write a file in a folder that there is")
    return path


def run(args: argparse.Namespace) -> int:
    """Check, print, and return the exit status."""
    if not (args.json or args.probe_443) and find_spec("rich") is None:
        print("rich: not installed; pip install 'ps-postgres[cli]', or write --json", file=sys.stderr)
        return 2
    try:
        return _probe(args) if args.probe_443 else _check(args)
    except KeyboardInterrupt:
        return 130


def _check(args: argparse.Namespace) -> int:
    from ps_cli._doctor.findings import chain, exit_status, finding, judge, merge
    from ps_cli._doctor.observe import observe
    from ps_cli._doctor.setups import UnreadableError
    from ps_cli._doctor.show import as_json, show
    from ps_core.errors import ConfigurationError

    paths: list[PathSeen] = []
    chains, findings = [], []
    try:
        for setup in _setups(args):
            load = _load(args, setup)
            seen = observe(setup.endpoints, addresses=dict(args.resolve or ()))
            paths += seen
            chains += [] if load is None else [chain(load, seen)]
            findings += judge(setup, seen, load)
    except ConfigurationError as exc:
        findings.append(finding("D001", why=str(exc)))
    except UnreadableError as exc:
        findings.append(finding("D002", what=args.django or args.engine, why=str(exc)))
    findings = merge(findings)
    if args.json:
        print(json.dumps(as_json(paths, chains, findings), indent=2))
    else:
        from rich.console import Console

        console = Console(highlight=False, record=args.svg is not None, width=110 if args.svg else None)
        show(console, paths, chains, findings)
        if args.svg:
            console.save_svg(str(args.svg), title="ps-postgres doctor")
    return exit_status(findings)


def _probe(args: argparse.Namespace) -> int:
    from ps_cli._doctor.findings import finding
    from ps_cli._doctor.probe import Probe
    from ps_cli._doctor.setups import UnreadableError
    from ps_core.errors import ConfigurationError

    status = 0
    try:
        for setup in _setups(args):
            probe = Probe(setup, dict(args.resolve or ()))
            print(probe.introduction())
            if not probe.is_open:
                print("Nothing was asked: what stands above is in the way.")
                status = 2
                continue
            for number, (question, answer) in enumerate(probe.answers(), 1):
                print(f"{number:2}. {question}\n    {answer}", flush=True)
    except ConfigurationError as exc:
        print(finding("D001", why=str(exc)).cause, file=sys.stderr)
        return 2
    except UnreadableError as exc:
        print(finding("D002", what=args.django or args.engine, why=str(exc)).cause, file=sys.stderr)
        return 2
    return status


def _setups(args: argparse.Namespace) -> Iterable[Setup]:
    from ps_cli._doctor.setups import of_django, of_engine, of_topology
    from ps_core.errors import ConfigurationError
    from ps_core.topology import Topology

    settings: Any = {name: value for name in _OPTIONS if (value := getattr(args, name)) is not None}
    if settings and (args.django or args.engine):
        raise ConfigurationError(f"--{next(iter(settings)).replace('_', '-')} goes with a URL or --env: write it there")
    if args.django:
        return of_django(args.django)
    if args.engine:
        return [of_engine(args.engine)]
    return [of_topology(Topology.from_env(**settings) if args.env else Topology.from_url(args.url, **settings))]


def _load(args: argparse.Namespace, setup: Setup) -> Load | None:
    from ps_cli._doctor.seen import Load
    from ps_core.errors import ConfigurationError

    pool_size = args.pool_size or setup.pool_size
    if args.workers is None:
        return None
    if pool_size is None:
        raise ConfigurationError("--workers alone does not tell the number of connections: write --pool-size, too")
    given = {name: value for name in ASSUMED if (value := getattr(args, name)) is not None}
    return Load(workers=args.workers, pool_size=pool_size, given=frozenset(given), **(ASSUMED | given))
