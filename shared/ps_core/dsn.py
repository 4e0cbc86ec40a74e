"""Connection strings in and out: PlanetScale's user names, libpq's parameters, and ours (`ps_*`)."""

import re
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Self
from urllib.parse import quote, unquote, unquote_to_bytes

from ps_core._plain_errors import ConfigurationError

__all__ = ["Dsn", "Pairs"]

Pairs = tuple[tuple[str, str], ...]
"""Parameters as sorted (name, value) pairs: hashable, and `dict(pairs)` away from a mapping."""

_URL: Final = re.compile(r"(\w[\w+.-]*)://", re.ASCII)
_SCHEMES: Final = {
    "postgresql", "postgres", "postgresql+ps", "postgresql+ps_async", "postgresql+psycopg", "postgresql+psycopg_async"
}  # fmt: skip
# As SQLAlchemy tells a host with a port; an IPv6 address in brackets, too.
_HOST_PORT: Final = re.compile(r"(?:\[([0-9A-Fa-f:.%]+)\]|([A-Za-z0-9.-]*)):(.*)")
# One `name = value` of a keyword/value string, as libpq reads it.
_KEYWORD: Final = re.compile(r"(\w+)\s*=\s*('(?:[^'\\]|\\.)*'|(?:[^\s\\]|\\.)*)", re.DOTALL)
_CHAR: Final = r"(?:[A-Za-z0-9._~|-]|%(?!00)[0-9A-Fa-f]{2})"
_PLAIN_URL: Final = re.compile(
    rf"postgresql://(?:(?P<user>{_CHAR}+)(?::(?P<password>{_CHAR}+))?@)?(?P<host>[A-Za-z0-9.-]+)?(?::(?P<port>[0-9]+))?"
    rf"(?:/(?P<dbname>{_CHAR}+)?)?"
    r"(?:\?(?P<query>(?:(?:sslmode|sslrootcert|application_name|connect_timeout|channel_binding)"
    rf"=(?:{_CHAR}|/)+(?:&(?=[a-z])|\Z))*))?"
)
"""What a URL usually is: nothing in it depends on the installed libpq."""
_SECRETS: Final = {
    "sslpassword", "oauth_client_secret", "scram_client_key", "scram_server_key", "ps_direct_url", "ps_replica_urls"
}  # fmt: skip
_ENCODE: Final = "percent-encode special characters in user name and password ('@' is %40, '/' is %2F, ':' is %3A, '%' is %25)"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Dsn:
    """One connection string, decoded. Empty means not given: libpq's own default holds."""

    host: str = ""
    """A name, an address (IPv6 without brackets), the directory of a Unix socket, or several of these with commas."""
    port: int | None = None
    """Where several hosts have ports of their own, the first one's."""
    ports: tuple[int | None, ...] = ()
    """The port of each host, where they are not the same; None: libpq's default."""
    user: str = ""
    """The user as it is sent to the server: `{role}.{branch}`, with `|suffix` where one is needed."""
    password: str = ""
    dbname: str = ""
    params: Pairs = ()
    """libpq's other parameters."""
    ps: Pairs = ()
    """Our own parameters, without their prefix `ps_`."""

    @classmethod
    def parse(cls, text: str | None) -> Self:
        """Read a URL (`postgresql://`, `postgres://`, SQLAlchemy's `postgresql+ps://`, ...) or "host=... user=...".

        All but `ps_*` parameters is read by libpq, by its rules; in the query of a SQLAlchemy URL `+` is a space. Several hosts
        are written as libpq takes them (`h1:1,h2:2`, `host=h1,h2&port=1,2`) or as SQLAlchemy does (`host=h1:1&host=h2:2`).

        Raises:
            ConfigurationError: the text is None or no such thing, has a parameter unknown to the installed libpq, or SQLAlchemy's
                `***` for a password. The message shows nothing that may be part of a password.
        """
        if text is None:
            raise ConfigurationError(
                "the connection string is None: write postgresql://USER:PASSWORD@HOST/DBNAME, or set its variable"
            )
        if not isinstance(text, str):
            raise ConfigurationError(f"the connection string is of type {type(text).__name__}: write a str")
        text = text.strip()
        if not text:
            raise ConfigurationError("the connection string is empty: write postgresql://USER:PASSWORD@HOST/DBNAME")
        url = _URL.match(text)
        rest, ps = _split_url(url[1], text[url.end() :]) if url else _split_keywords(text)
        options = _read(rest)
        if options is None:
            raise ConfigurationError(
                f"libpq cannot read the connection string: write postgresql://USER:PASSWORD@HOST:PORT/DBNAME?NAME=VALUE and "
                f"{_ENCODE}, or NAME=VALUE pairs with single quotes around values that have spaces"
            )
        ports = [_port(text) for text in options.pop("port", "").split(",")]
        hosts = options.get("host", "").count(",") + 1
        if len(ports) not in (1, hosts):
            raise ConfigurationError(f"{len(ports)} ports for {hosts} hosts: write one for each host, or one for all")
        known = {name: options.pop(name, "") for name in ("host", "user", "password", "dbname")}
        if known["password"] == "***":  # noqa: S105
            raise ConfigurationError(
                "the password is '***', which stands for a hidden one: write the password; of a SQLAlchemy URL, "
                "url.render_as_string(hide_password=False)"
            )
        return cls(
            **known,
            port=ports[0],
            ports=tuple(ports) if len(set(ports)) > 1 else (),
            params=tuple(sorted(options.items())),
            ps=tuple(sorted(ps.items())),
        )

    @property
    def base_user(self) -> str:
        """The user name without its suffix."""
        return self.user.partition("|")[0]

    @property
    def suffix(self) -> str:
        """What follows the user name's `|`: "replica" or the name of a bouncer; "" without one."""
        return self.user.partition("|")[2]

    @property
    def branch(self) -> str:
        """The branch in `{role}.{branch}`; "" without one."""
        return self.base_user.rpartition(".")[2] if "." in self.base_user else ""

    def render(self, *, hide_password: bool = True) -> str:
        """Return the URL that libpq, and `parse`, read back; with `hide_password`, `***` in the place of each secret."""

        def value(name: str, text: str) -> str:
            return "***" if hide_password and name in _SECRETS else quote(text, safe="/")

        password = "***" if hide_password else quote(self.password, safe="")
        login = quote(self.user, safe="") + (f":{password}" if self.password else "")
        hosts = [quote(host, safe=":") for host in self.host.split(",")]
        hosts_ports = ",".join(
            (f"[{host}]" if ":" in host else host) + (f":{port}" if port else "")
            for host, port in zip(hosts, self.ports or [self.port] * len(hosts), strict=True)
        )
        pairs = (*self.params, *((f"ps_{name}", text) for name, text in self.ps))
        query = "&".join(f"{name}={value(name, text)}" for name, text in pairs)
        return (
            f"postgresql://{login}{'@' if login else ''}{hosts_ports}/{quote(self.dbname, safe='')}{'?' if query else ''}{query}"
        )

    def __repr__(self) -> str:
        return f"Dsn({self.render()!r})"


def _split_url(scheme: str, rest: str) -> tuple[str, dict[str, str]]:
    """Return a URL for libpq, and the `ps_*` parameters taken out of it."""
    if scheme not in _SCHEMES:
        raise ConfigurationError("the URL is of another database or driver: write postgresql://... or postgresql+ps://...")
    # As libpq looks for it: a '?' before the '@' belongs to the password.
    start = rest.find("?", rest.partition("/")[0].find("@") + 1)
    head, query = (rest, "") if start < 0 else (rest[:start], rest[start + 1 :])
    authority, _, path = head.partition("/")
    if "@" in path or authority.count("@") > 1:
        # libpq would take part of the password for a host or a database, and show it.
        raise ConfigurationError(f"the URL has an '@' too many: {_ENCODE}")
    if "+" in scheme:
        query = query.replace("+", "%20")
    ps, others = {}, []
    for pair in _plain_hosts(list(filter(None, query.split("&")))):
        name, _, value = pair.partition("=")
        if unquote(name).startswith("ps_"):
            ps[unquote(name).removeprefix("ps_")] = unquote(value)
        else:
            others.append(pair)
    if "@" not in query and "password" not in query:  # else what looks like a name may be part of a password
        for pair in others:
            if _read(f"postgresql://?{pair}".replace(" ", "%20")) is None:
                name = pair.partition("=")[0]
                raise ConfigurationError(
                    f"the installed libpq cannot read the parameter {name!r}: correct its name, percent-encode its value, or "
                    f"leave it out"
                )
    # libpq 17 and later refuses plain spaces, which SQLAlchemy renders.
    return f"postgresql://{head}?{'&'.join(others)}".replace(" ", "%20"), ps


def _plain_hosts(pairs: list[str]) -> list[str]:
    """Return a URL's parameters with SQLAlchemy's `host=h1:1&host=h2:2` as libpq's `host=h1,h2&port=1,2`."""
    given = [unquote(pair.partition("=")[2]) for pair in pairs if pair.startswith("host=")]
    if len(given) < 2 and not any(_HOST_PORT.fullmatch(host) for host in given):
        return pairs
    if any(pair.startswith("port=") for pair in pairs):
        if len(given) < 2:
            return pairs
        raise ConfigurationError("hosts and ports are written in two ways: write host=h1:p1&host=h2:p2, or host=h1,h2&port=p1,p2")
    found = [match.groups("") if (match := _HOST_PORT.fullmatch(host)) else (host, "", "") for host in given]
    hosts, ports = [first or second for first, second, _ in found], [port for *_, port in found]
    rest = [pair for pair in pairs if not pair.startswith("host=")]
    return [*rest, f"host={quote(','.join(hosts), safe=',')}", f"port={','.join(ports)}"]


def _port(text: str) -> int | None:
    if text and not (text.isdecimal() and 0 < int(text) < 65536):
        raise ConfigurationError(f"the port is not one number from 1 to 65535: write HOST:PORT, and {_ENCODE}")
    return int(text) if text else None


def _split_keywords(text: str) -> tuple[str, dict[str, str]]:
    """Return a keyword/value string for libpq, and the `ps_*` parameters taken out of it."""
    ps = {}

    def take(found: re.Match[str]) -> str:
        name, value = found.groups()
        if not name.startswith("ps_"):
            return found[0]
        if value.startswith("'"):
            value = value[1:-1]
        ps[name.removeprefix("ps_")] = re.sub(r"\\(.)", r"\1", value, flags=re.DOTALL)
        return ""

    return _KEYWORD.sub(take, text), ps


def _read(conninfo: str) -> dict[str, str] | None:
    return _read_plain(conninfo) or _read_by_libpq(conninfo)


def _read_plain(conninfo: str) -> dict[str, str] | None:
    """Read a URL of which every libpq makes the same, without loading it: most are. None: libpq has to say."""
    url = _PLAIN_URL.fullmatch(conninfo)
    if url is None:
        return None
    pairs = [*url.groupdict().items(), *(pair.split("=", 1) for pair in (url["query"] or "").split("&") if pair)]
    try:
        return {name: unquote_to_bytes(value).decode() for name, value in pairs if value and name != "query"}
    except UnicodeError:
        return None


def _read_by_libpq(conninfo: str) -> dict[str, str] | None:
    import psycopg
    from psycopg.conninfo import conninfo_to_dict

    # Not `raise ... from None`: libpq's message may hold the password, and would stay in __context__.
    with suppress(psycopg.Error, UnicodeError):
        return {name: str(value) for name, value in conninfo_to_dict(conninfo).items()}
    return None
