"""Connection strings in and out, by tables; libpq is the judge of what is rendered."""

import itertools
import pickle
from urllib.parse import unquote

import pytest
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict

from ps_core.dsn import Dsn, _read_by_libpq, _read_plain
from ps_core.errors import ConfigurationError

pytestmark = pytest.mark.fast

FULL = Dsn(host="h.psdb.cloud", port=6432, user="app.br4nch|write-pool", password="p w@/:?#%|", dbname="shop")


@pytest.mark.parametrize(
    ("text", "dsn"),
    [
        ("postgresql://app.br4nch%7Cwrite-pool:p%20w%40%2F%3A%3F%23%25%7C@h.psdb.cloud:6432/shop", FULL),
        ("postgres://app.br4nch|write-pool:p%20w%40%2F:?#%25|@h.psdb.cloud:6432/shop", FULL),
        ("postgresql+ps://app.br4nch|write-pool:p w%40%2F:?#%25|@h.psdb.cloud:6432/shop", FULL),
        ("postgresql+ps_async://app.br4nch|write-pool:p w%40%2F:?#%25|@h.psdb.cloud:6432/shop", FULL),
        ("  postgresql+psycopg://app.br4nch|write-pool:p w%40%2F:?#%25|@h.psdb.cloud:6432/shop\n", FULL),
        ("host=h.psdb.cloud port=6432 user=app.br4nch|write-pool password='p w@/:?#%|' dbname=shop", FULL),
        ("postgresql://", Dsn()),
        ("postgresql:///db", Dsn(dbname="db")),
        ("postgresql://u@[::1]:5433/db", Dsn(host="::1", port=5433, user="u", dbname="db")),
        ("postgresql://u@[fe80::1%25eth0]/db", Dsn(host="fe80::1%eth0", user="u", dbname="db")),
        ("postgresql://u@%2Frun%2Fpg:5433/db", Dsn(host="/run/pg", port=5433, user="u", dbname="db")),
        ("postgresql://u@/db?host=/run/pg&port=5433", Dsn(host="/run/pg", port=5433, user="u", dbname="db")),
        ("postgresql://u@h1:1,h2:1/db", Dsn(host="h1,h2", port=1, user="u", dbname="db")),
        ("postgresql://u@h1:1,h2:2/db", Dsn(host="h1,h2", port=1, ports=(1, 2), user="u", dbname="db")),
        ("postgresql://u@h1,h2:2/db", Dsn(host="h1,h2", ports=(None, 2), user="u", dbname="db")),
        ("postgresql+ps://u@/db?host=h1:1&host=h2:2", Dsn(host="h1,h2", port=1, ports=(1, 2), user="u", dbname="db")),
        ("postgresql://u@/db?host=h1%3A1&host=[::1]:1", Dsn(host="h1,::1", port=1, user="u", dbname="db")),
        ("postgresql+ps://u@/db?host=h1:&host=h2", Dsn(host="h1,h2", user="u", dbname="db")),
        ("postgresql+ps://u@/db?host=h1:1", Dsn(host="h1", port=1, user="u", dbname="db")),
        ("postgresql+ps://u@/db?host=h1,h2&port=1,2", Dsn(host="h1,h2", port=1, ports=(1, 2), user="u", dbname="db")),
        ("postgresql+ps:///?service=shop", Dsn(params=(("service", "shop"),))),
        ("postgresql://u@:5433/db", Dsn(port=5433, user="u", dbname="db")),
        ("postgresql://h/db?user=u&password=s", Dsn(host="h", user="u", password="s", dbname="db")),
        (
            "postgresql://h?sslmode=require&application_name=a+b",
            Dsn(host="h", params=(("application_name", "a+b"), ("sslmode", "require"))),
        ),
        ("postgresql+ps://h?application_name=a+b%2Bc", Dsn(host="h", params=(("application_name", "a b+c"),))),
        (
            "postgresql://h?ps_bouncer=b&sslmode=require&ps_direct_url=postgresql%3A%2F%2Fh2%3Fsslmode%3Ddisable",
            Dsn(
                host="h",
                params=(("sslmode", "require"),),
                ps=(("bouncer", "b"), ("direct_url", "postgresql://h2?sslmode=disable")),
            ),
        ),
        (
            r"host=h ps_application_name = 'it\'s ps_a=b' password='x ps_bouncer=y' ps_bouncer=b",
            Dsn(host="h", password="x ps_bouncer=y", ps=(("application_name", "it's ps_a=b"), ("bouncer", "b"))),
        ),
    ],
)
def test_parse(text: str, dsn: Dsn) -> None:
    """Every spelling gives the same decoded parts, and what is rendered is read back the same."""
    assert Dsn.parse(text) == dsn
    assert Dsn.parse(dsn.render(hide_password=False)) == dsn


@pytest.mark.parametrize(
    "dsn",
    [
        FULL,
        Dsn(host="::1", port=5433, user="u|replica", dbname="d b/?"),
        Dsn(host="/run/my pg", user="u", params=(("options", "-c a=b&c"), ("sslmode", "disable"))),
    ],
)
def test_libpq_reads_what_is_rendered(dsn: Dsn) -> None:
    """libpq finds the same parts in a rendered URL."""
    parts = {"host": dsn.host, "port": str(dsn.port or ""), "user": dsn.user, "password": dsn.password, "dbname": dsn.dbname}
    expected = {name: value for name, value in {**parts, **dict(dsn.params)}.items() if value}
    assert conninfo_to_dict(dsn.render(hide_password=False)) == expected


@pytest.mark.parametrize(
    ("user", "parts"),
    [
        ("app.br4nch|write-pool", ("app.br4nch", "write-pool", "br4nch")),
        ("first.last.br4nch|replica", ("first.last.br4nch", "replica", "br4nch")),
        ("app.br4nch", ("app.br4nch", "", "br4nch")),
        ("app", ("app", "", "")),
    ],
)
def test_user_name(user: str, parts: tuple[str, str, str]) -> None:
    """A user name falls into its role and branch, and its suffix."""
    dsn = Dsn(user=user)
    assert (dsn.base_user, dsn.suffix, dsn.branch) == parts


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (" ", "is empty"),
        ("mydb", "libpq cannot read the connection string: write postgresql://"),
        ("mysql://u:s3cret@h/db", "another database or driver"),
        ("postgresql+asyncpg://u:s3cret@h/db", "another database or driver"),
        ("postgresql://u:***@h/db", r"hide_password=False"),
        ("postgresql://u:s3cret@h/db?sslmod=require", "cannot read the parameter 'sslmod': correct its name"),
        ("postgresql://u:s3cret@h/db?sslmode", "cannot read the parameter 'sslmode'"),
        ("postgresql://u:s3cret@h/db?options=-c%20a=b", "cannot read the parameter 'options'.*percent-encode its value"),
        ("postgresql://u:s3cret@h:99999/db", "not one number from 1 to 65535"),
        ("postgresql://u:s3cret@/db?host=h1&port=1,2", "2 ports for 1 hosts: write one for each"),
        ("postgresql://u:s3cret@/db?host=h1,h2,h3&port=1,2", "2 ports for 3 hosts: write one for each"),
        ("postgresql://u:s3cret@/db?host=h1:1&host=h2:2&port=1", "written in two ways: write host=h1:p1&host=h2:p2"),
        ("postgresql://u:s3cret@/db?host=h1:1&host=h2:x", "not one number from 1 to 65535"),
        ("postgresql://u:x@s3cret@h/db", "'@' too many"),
        ("postgresql://u:x@s3cret/y@h/db", "'@' too many"),
        ("postgresql://u:1/s3cret@h/db", "'@' too many"),
        ("postgresql://u:s3cret", "not one number from 1 to 65535"),
        ("postgresql://u:s3cret%zz@h/db", "%40"),
        ("postgresql://u:s3cret%00@h/db", "%40"),
        ("postgresql://u:s3cret%ff@h/db", "%40"),
        ("postgresql://u:x/?s3cret=x@h/db", "%40"),
        ("postgresql://h/db?password=x&s3cret=x", "%40"),
        ("host=h password=x s3cret", "quotes around values"),
        ("host=h password=x s3cret=x", "quotes around values"),
        ("host=h password='s3cret", "quotes around values"),
    ],
)
def test_refusals_show_no_password(text: str, message: str) -> None:
    """What cannot be read is refused with what to write, and nothing that may be part of a password is shown or kept."""
    with pytest.raises(ConfigurationError, match=message) as caught:
        Dsn.parse(text)
    assert "s3cret" not in str(caught.value)
    assert caught.value.__cause__ is caught.value.__context__ is None


@pytest.mark.skipif(pq.version() >= 170000, reason="needs a libpq before 17")
def test_parameter_of_a_newer_libpq() -> None:
    """A parameter that the installed libpq does not have is named."""
    with pytest.raises(ConfigurationError, match="installed libpq cannot read the parameter 'sslnegotiation'"):
        Dsn.parse("postgresql://u@h/db?sslmode=require&sslnegotiation=direct")


def test_secrets_are_hidden() -> None:
    """Neither repr nor render shows a password, also not that of a URL in a parameter."""
    dsn = Dsn.parse(
        "postgresql://u:s3cret@h/db?sslpassword=s3cret&ps_bouncer=b"
        "&ps_direct_url=postgresql%3A%2F%2Fm%3As3cret%40h&ps_replica_urls=postgresql%3A%2F%2Fm%3As3cret%40h"
    )
    assert dsn.render() == ("postgresql://u:***@h/db?sslpassword=***&ps_bouncer=b&ps_direct_url=***&ps_replica_urls=***")
    assert "s3cret" not in repr(dsn)
    assert unquote(dsn.render(hide_password=False)).count("s3cret") == 4


def test_dsns_are_values() -> None:
    """Equal, hashable, and the same after pickling."""
    assert pickle.loads(pickle.dumps(FULL)) == FULL
    assert len({FULL, Dsn.parse(FULL.render(hide_password=False))}) == 1


PARTS = (
    ("", "u@", "u.br%7Crep-lica~_:p%2F%40%C3%A9.-@", "u:%25%20@"),
    ("", "h", "h.psdb.cloud", "10.0.0.1", "a-b"),
    ("", ":5432", ":0", ":99999"),
    ("", "/", "/db", "/d%20b"),
    ("", "?", "?sslmode=verify-full", "?sslmode=x&sslrootcert=/a/b%20c.pem", "?application_name=a&application_name=b"),
)
ODD = (
    "postgresql://u:a%00@h/db",
    "postgresql://u:a%ff@h/db",
    "postgresql://u:a%zz@h/db",
    "postgresql://u:a b@h/db",
    "postgresql://u:a:b@h/db",
    "postgresql://h1,h2/db",
    "postgresql://[::1]/db",
    "postgresql://h/db?unknown=1",
    "postgresql://h/db?sslmode=",
    "postgresql://h/db?sslmode",
    "postgresql://h/db?sslmode=a&",
    "postgresql://h/db?user=x",
    "postgresql://h/a/b",
    "host=h",
    "",
)


def test_plain_urls() -> None:
    """A URL that is read without libpq is what libpq makes of it; and most are."""
    for parts in itertools.product(*PARTS):
        text = "postgresql://" + "".join(parts)
        found = _read_plain(text)
        assert found is not None, text
        assert found == _read_by_libpq(text), text


@pytest.mark.parametrize("text", ODD)
def test_urls_that_are_not_plain(text: str) -> None:
    """What is read by rules of libpq's own is left to it."""
    assert _read_plain(text) is None
