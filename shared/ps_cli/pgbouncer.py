"""`ps-postgres pgbouncer`: write the configuration of a PgBouncer on the application's side, or check one."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ps_core.errors import ConfigurationError
from ps_core.pgbouncer import DEFAULT_POOL_SIZE, MAX_CLIENT_CONN, Load, application_urls, check, pgbouncer_ini, userlist
from ps_core.topology import Topology
from ps_lab.pgbouncer import installed_pgbouncer, release_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ps_core.pgbouncer import Remark

__all__ = ["add_parser", "run"]

DEFAULT_VERSION: Final = (1, 24)
"""What the ini is for where no PgBouncer is installed."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the sub-command."""
    parser = subparsers.add_parser(
        "pgbouncer",
        help="configure a PgBouncer on the application's side",
        description="Write pgbouncer.ini and userlist.txt (it has the passwords) of a PgBouncer between the application and the"
        " database's own, with caps that fit; or check such an ini. Connects to nothing. Exit status of --check: 0 good,"
        " 1 warnings, 2 errors. A URL on the command line is seen by whoever can list processes: --env does without.",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("url", nargs="?", metavar="URL", help="a role's URL, with its ps_* parameters")
    source.add_argument("--env", action="store_true", help="PS_URL or DATABASE_URL, and PS_*")
    parser.add_argument("--workers", type=int, required=True, metavar="N", help="processes of the application on a machine")
    parser.add_argument("--pool-size", type=int, required=True, metavar="N", help="connections of a worker, overflow included")
    parser.add_argument("--machines", type=int, default=1, metavar="N", help="PgBouncers like this one (default 1)")
    for name, value in (("max-client-conn", MAX_CLIENT_CONN), ("default-pool-size", DEFAULT_POOL_SIZE)):
        parser.add_argument(
            f"--{name}", type=int, default=value, metavar="N", help=f"of an endpoint's bouncers together (default {value})"
        )
    parser.add_argument(
        "--listen", type=_listen, default=("127.0.0.1", 6432), metavar="WHERE", help="127.0.0.1:6432, or a Unix socket's folder"
    )
    parser.add_argument(
        "--pgbouncer-version", type=_version, metavar="X.Y", help="which it is for (default: the one installed here, else 1.24)"
    )
    parser.add_argument("--check", type=Path, metavar="INI", help="check this one, and write nothing")
    parser.add_argument("--output", type=Path, default=Path(), metavar="DIR", help="where to write (default: here)")
    parser.add_argument("--force", action="store_true", help="write over files that are there")
    parser.set_defaults(run=run)


def _listen(text: str) -> tuple[str, int]:
    if text.startswith("/"):
        return text, 6432
    host, _, port = text.rpartition(":")
    if host not in ("127.0.0.1", "::1", "localhost") or not port.isdecimal() or not 0 < int(port) < 65536:
        raise argparse.ArgumentTypeError("write 127.0.0.1:PORT or the folder of a Unix socket: there is no TLS on this side")
    return host, int(port)


def _version(text: str) -> tuple[int, int]:
    if not (found := re.fullmatch(r"(\d+)\.(\d+)(?:\.\d+)?", text)):
        raise argparse.ArgumentTypeError("write a version such as 1.24")
    return int(found[1]), int(found[2])


def run(args: argparse.Namespace) -> int:
    """Write or check, and return the exit status."""
    try:
        topology = Topology.from_env() if args.env else Topology.from_url(args.url)
        load = Load(
            workers=args.workers,
            pool_size=args.pool_size,
            machines=args.machines,
            max_client_conn=args.max_client_conn,
            default_pool_size=args.default_pool_size,
        )
        if args.check:
            return _report(check(args.check.read_text(), topology, load))
        _write(args, topology, load)
    except (ConfigurationError, OSError, UnicodeError) as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 2
    return 0


def _report(remarks: Sequence[Remark]) -> int:
    for remark in remarks:
        print(f"{remark.level}: {remark.text}")
    return max(({"warning": 1, "error": 2}[remark.level] for remark in remarks), default=0)


def _write(args: argparse.Namespace, topology: Topology, load: Load) -> None:
    folder: Path = args.output.absolute()
    auth_file = folder / "userlist.txt"
    host, port = args.listen
    version, why = _version_for(args)
    texts = {
        auth_file: userlist(topology),
        folder / "pgbouncer.ini": pgbouncer_ini(
            topology, load, auth_file=str(auth_file), listen=host, port=port, version=version
        ),
    }
    there = [path.name for path in texts if path.exists()]
    if there and not args.force:
        raise ConfigurationError(f"{', '.join(there)} in {folder}: already there: write --force, or another --output")
    folder.mkdir(parents=True, exist_ok=True)
    for path, text in texts.items():
        # Made anew, for what is there may be open to others.
        path.unlink(missing_ok=True)
        path.touch(mode=0o600, exist_ok=False)
        path.write_text(text)
        print(f"wrote {path}")
    print("The ini is for PgBouncer {}.{}{}".format(*version, why))
    print("The application connects to (with its password in the place of ***):")
    for name, urls in application_urls(topology, listen=host, port=port).items():
        if urls:
            print(f"PS_{name.upper()}={','.join(url.render() for url in urls)}")


def _version_for(args: argparse.Namespace) -> tuple[tuple[int, int], str]:
    """Return the release that the ini is for, and why that one."""
    if args.pgbouncer_version is not None:
        return args.pgbouncer_version, ""
    if (installed := installed_pgbouncer()) is None:
        return DEFAULT_VERSION, ": none is installed here, and --pgbouncer-version names none"
    printed = subprocess.run([installed, "--version"], check=True, capture_output=True, text=True).stdout  # noqa: S603 - found above
    return release_of(printed), f", which is {installed}"
