"""Misspelled names, by tables: wherever settings are given, they are refused with the name that was probably meant."""

import asyncio
import re
from functools import partial
from typing import Any

import pytest
from psycopg import pq

from ps_core import ConfigurationError, Topology, connect, connect_async
from ps_core._registry import target_of
from ps_core.errors import UnknownSetting
from ps_core.topology import TopologySettings

pytestmark = pytest.mark.fast

URL = "postgresql://app.br4nch:s3cret@x.horizon.psdb.cloud"
TOPOLOGY = Topology.from_url(URL)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("replica_bouncers", "there is no setting replica_bouncers: did you mean replica_bouncer?"),
        ("direct_ulr", "there is no setting direct_ulr: did you mean direct_url?"),
        ("statement_timeuot", "there is no setting statement_timeuot: did you mean statement_timeout?"),
        ("Bouncer", "there is no setting Bouncer: did you mean bouncer?"),
        ("xyzzy", "there is no setting xyzzy: write one of bouncer, replica_bouncer, "),
    ],
)
def test_keywords_of_a_topology(name: str, message: str) -> None:
    """`from_url` and `from_env` refuse a keyword that is no setting; as Python does, also by a TypeError."""
    settings: dict[str, Any] = {name: "a"}
    makes = (partial(Topology.from_url, URL, **settings), partial(Topology.from_env, {"PS_URL": URL}, **settings))
    for make in makes:
        with pytest.raises(UnknownSetting, match=f"^{re.escape(message)}") as caught:
            make()
        assert isinstance(caught.value, ConfigurationError)
        assert isinstance(caught.value, TypeError)
    if name == "xyzzy":
        with pytest.raises(UnknownSetting, match=r"^there is no setting ps_xyzzy: write one of ps_bouncer, ps_replica_bouncer, "):
            Topology.from_url(f"{URL}?ps_xyzzy=a")


@pytest.mark.parametrize("setting", TopologySettings.__annotations__)
def test_settings_are_their_own_nearest(setting: str) -> None:
    """Each setting that ends in another letter is refused for itself, as a keyword, a parameter and a variable."""
    wrong = setting[:-1] + "x"
    settings: dict[str, Any] = {wrong: "a"}
    with pytest.raises(UnknownSetting, match=rf"did you mean {setting}\?"):
        Topology.from_url(URL, **settings)
    with pytest.raises(UnknownSetting, match=rf"there is no setting ps_{wrong}: did you mean ps_{setting}\?"):
        Topology.from_url(f"{URL}?ps_{wrong}=a")
    variable = f"PS_{setting.upper()}S"
    with pytest.raises(UnknownSetting, match=rf"(?m)^there is no variable {variable}: did you mean PS_{setting.upper()}\?$"):
        Topology.from_env({"PS_URL": URL, variable: "a"})


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("PS_REPLICA_BOUNCERS", "PS_REPLICA_BOUNCER"),
        ("PS_REPLICA_URL", "PS_REPLICA_URLS"),
        ("PS_DIRECT_ULR", "PS_DIRECT_URL"),
        ("PS_URLS", "PS_URL"),
        ("PS_BOUNCR", "PS_BOUNCER"),
        ("PS_Bouncer", "PS_BOUNCER"),
        ("PS_CONNECTION_TIMEOUT", "PS_CONNECT_TIMEOUT"),
        ("PS_REPLICA_SHARES", "PS_REPLICA_SHARE"),
    ],
)
def test_misspelled_variables(variable: str, meant: str) -> None:
    """A variable that is nearly a setting is refused, but for an empty one, which is not set."""
    with pytest.raises(UnknownSetting, match=rf"(?m)there is no variable {variable}: did you mean {meant}\?$"):
        Topology.from_env({"PS_URL": URL, variable: "a"})
    assert Topology.from_env({"PS_URL": URL, variable: ""}) == TOPOLOGY


@pytest.mark.parametrize(
    "variable",
    [
        "PS_REPLICA_SHARE",
        # `ps_lab`'s, one of which is as like a setting as a misspelling is
        "PS_LAB_POSTGRES",
        "PS_LAB_PGBOUNCER",
        "PS_LAB_REPLICA_BOUNCER",
        # of this project's tests
        "PS_WRITE_DOCS",
        "PS_DIFFERENTIAL",
        "PS_PAIRS",
        "PS_STATEMENTS",
        # of anybody
        "PS_",
        "PS_DEBUG",
        "PS_HOST",
        "PS_PASSWORD",
        "PS_PORT",
        "PS_POOL",
        "PS_REPLICA_ROLE",
        "PS_TIMEOUT",
        "REPLICA_BOUNCERS",
        "ps_bouncers",
        "MY_PS_BOUNCERS",
    ],
)
def test_variables_of_others(variable: str) -> None:
    """What is not nearly a setting belongs to somebody else."""
    assert Topology.from_env({"PS_URL": URL, variable: "1"}) == TOPOLOGY


def test_process_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process's environment is looked at, too."""
    monkeypatch.setenv("PS_URL", URL)
    monkeypatch.setenv("PS_REPLICA_BOUNCERS", "read-pool")
    with pytest.raises(UnknownSetting, match=r"did you mean PS_REPLICA_BOUNCER\?"):
        Topology.from_env()


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        (URL, {"replica_bouncers": "a"}, "there is no option replica_bouncers: did you mean replica_bouncer?"),
        (URL, {"sslmod": "require"}, "there is no option sslmod: did you mean sslmode?"),
        (URL, {"autocomit": True}, "there is no option autocomit: did you mean autocommit?"),
        (URL, {"retyr": 1}, "there is no option retyr: did you mean retry?"),
        (URL, {"bindings": "server"}, "there is no option bindings: did you mean binding?"),
        (URL, {"too": "replica"}, "there is no option too: did you mean to?"),
        (
            URL,
            {"xyzzy": 1},
            "there is no option xyzzy: write a setting of ps_core.topology.TopologySettings, or a keyword of psyc",
        ),
        ("", {"host": "x", "pasword": "s3cret"}, "there is no option pasword: did you mean password?"),
        (TOPOLOGY, {"autocomit": True}, "there is no option autocomit: did you mean autocommit?"),
        (TOPOLOGY, {"bouncer": "a", "direct_port": 1}, "a Topology is complete: give bouncer, direct_port to Topology.from_url"),
        (TOPOLOGY.primary, {"statement_timeout": 1}, "an Endpoint is complete: give statement_timeout to Topology.from_url"),
    ],
)
def test_keywords_of_connect(target: Any, options: dict[str, Any], message: str) -> None:
    """`connect` and `connect_async` refuse what is neither a setting nor psycopg's, before they connect."""
    with pytest.raises(UnknownSetting, match=f"^{re.escape(message)}") as caught:
        connect(target, **options)
    assert "s3cret" not in str(caught.value)
    with pytest.raises(UnknownSetting, match=f"^{re.escape(message)}"):
        asyncio.run(connect_async(target, **options))


@pytest.mark.parametrize("target", [URL, TOPOLOGY, TOPOLOGY.primary])
def test_psycopg_keywords(target: Any) -> None:
    """Each keyword of psycopg's and of the installed libpq is taken, and left for psycopg; settings are taken out."""
    options: dict[str, Any] = {option.keyword.decode(): "1" for option in pq.Conninfo.get_defaults()}
    options |= {"autocommit": True, "prepare_threshold": 1, "context": None, "row_factory": None, "cursor_factory": None}
    options["connect_timeout"] = "1s"
    left = {**options, "bouncer": "write-pool", "lock_timeout": "1s"} if target is URL else dict(options)
    target_of(target, "primary", None, left)
    ours = {"connect_timeout", "application_name"} if target is URL else set()
    assert left == {name: value for name, value in options.items() if name not in ours}
