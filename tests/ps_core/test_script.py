"""Several commands in one message, without a server: each row is a sentence."""

import pytest

from ps_core._message.script import NOTHING, Script, Setting

pytestmark = pytest.mark.fast


def test_head() -> None:
    """Commands are divided by semicolons, and a newline keeps them out of the line that an error message quotes."""
    assert Script(b"BEGIN", b"SET LOCAL a=1").head == b"BEGIN;SET LOCAL a=1;\n"
    assert Script(b"BEGIN").head == b"BEGIN;\n"
    assert NOTHING.head == b""
    assert NOTHING.parts == ()


def test_guard() -> None:
    """A script tells which of its commands is the guard."""
    assert Script(b"a", b"b", guard=1).guard == 1
    assert Script(b"a").guard is None


def test_then() -> None:
    """A script with more behind it is another one, and the same one each time where it is one command more."""
    script = Script(b"a")
    assert script.then(b"b").parts == (b"a", b"b")
    assert script.then(b"b") is script.then(b"b")
    assert script.then(b"c").parts == (b"a", b"c")
    assert script.then(b"b", b"c").parts == (b"a", b"b", b"c")
    assert script.then().parts == script.parts == (b"a",)


SETTINGS: list[tuple[str, list[Setting], tuple[bytes, ...], bytes]] = [
    (
        "a setting by its name",
        [Setting(b"lock_timeout", b"'5'")],
        (b"SET LOCAL lock_timeout='5'",),
        b"SELECT pg_catalog.set_config('lock_timeout','5',true)",
    ),
    (
        "a name of two parts is quoted, since one may be a reserved word",
        [Setting(b"app.user", b"'7'")],
        (b'SET LOCAL "app"."user"=\'7\'',),
        b"SELECT pg_catalog.set_config('app.user','7',true)",
    ),
    (
        "a transaction timeout that may run already is set anew by way of zero",
        [Setting(b"transaction_timeout", b"'9'")],
        (b"SET LOCAL transaction_timeout='0'", b"SET LOCAL transaction_timeout='9'"),
        b"SELECT pg_catalog.set_config('transaction_timeout','0',true),pg_catalog.set_config('transaction_timeout','9',true)",
    ),
    (
        "but not if it is switched off",
        [Setting(b"transaction_timeout", b"'0'")],
        (b"SET LOCAL transaction_timeout='0'",),
        b"SELECT pg_catalog.set_config('transaction_timeout','0',true)",
    ),
    (
        "a list is several values to SET, and one text to the function",
        [Setting(b"search_path", b"'a, b'", b"'a','b'")],
        (b"SET LOCAL search_path='a','b'",),
        b"SELECT pg_catalog.set_config('search_path','a, b',true)",
    ),
    (
        "what only the function sets exactly is set by it",
        [Setting(b"search_path", b"''", by_function=True), Setting(b"a", b"'1'")],
        (b"SELECT pg_catalog.set_config('search_path','',true)", b"SET LOCAL a='1'"),
        b"SELECT pg_catalog.set_config('search_path','',true),pg_catalog.set_config('a','1',true)",
    ),
    (
        "a name may come again, as a role does between what is set under it",
        [Setting(b"role", b"'a'"), Setting(b"b", b"'1'"), Setting(b"role", b"'none'")],
        (b"SET LOCAL role='a'", b"SET LOCAL b='1'", b"SET LOCAL role='none'"),
        b"SELECT pg_catalog.set_config('role','a',true),pg_catalog.set_config('b','1',true),"
        b"pg_catalog.set_config('role','none',true)",
    ),
    (
        "their order stays",
        [Setting(b"b", b"'1'"), Setting(b"a", b"'2'")],
        (b"SET LOCAL b='1'", b"SET LOCAL a='2'"),
        b"SELECT pg_catalog.set_config('b','1',true),pg_catalog.set_config('a','2',true)",
    ),
]


@pytest.mark.parametrize(("settings", "local", "config"), [row[1:] for row in SETTINGS], ids=[row[0] for row in SETTINGS])
def test_settings(settings: list[Setting], local: tuple[bytes, ...], config: bytes) -> None:
    """Settings as SET LOCALs, and as one SELECT."""
    assert Script.set_local(settings).parts == local
    assert Script.set_config(settings) == config
