"""The npm driver that PlanetScale's page is about, `@neondatabase/serverless`, gets from the lab what it was written against."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ps_lab import Lab
from tests.ps_lab.conftest import parameters
from tests.ps_lab.test_https import connection_string

ROOT = Path(__file__).parents[2]
SETUP = ROOT / ".ci" / "setup"


@pytest.fixture(scope="module")
def found(ps_lab: Lab) -> dict[str, Any]:
    """What `neon_driver.mjs` found."""
    if shutil.which("node") is None:
        pytest.skip("no Node")
    installed = subprocess.run([SETUP, "npm-driver"], cwd=ROOT, check=False, capture_output=True, text=True, timeout=100)
    if installed.returncode:
        pytest.skip(installed.stderr.strip().splitlines()[-1])
    given = {
        "https": ps_lab.edge.ports["https"],
        "direct": connection_string(ps_lab, port="direct"),
        "replica": connection_string(ps_lab, "replica", port="direct"),
        "write": connection_string(ps_lab, "write-pool", port="pooled"),
        "read": connection_string(ps_lab, "read-pool", port="pooled"),
        "wrong": connection_string(ps_lab, port="direct", password="wrong"),
        "table": "neon_driver",
    }
    run = subprocess.run(
        ["node", Path(__file__).with_name("neon_driver.mjs"), ROOT / ".cache" / "npm-driver"],
        input=json.dumps(given),
        env={**os.environ, "NODE_EXTRA_CA_CERTS": str(parameters(ps_lab)["sslrootcert"])},
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    ps_lab.sql("DROP TABLE IF EXISTS neon_driver")
    assert run.returncode == 0, run.stderr
    result: dict[str, Any] = json.loads(run.stdout)
    return result


def test_rows(found: dict[str, Any]) -> None:
    """Rows of statements with parameters, in all the forms that the driver has."""
    assert found["rows"] == [{"number": 2, "text": "é", "nothing": None, "list": '{"1",{"2",NULL}}'}]
    ((values),) = found["values"]
    assert values == {
        "bytea": {"type": "Buffer", "data": [0, 255]},
        "timestamptz": "1970-01-01T00:00:00.000Z",
        "jsonb": {"a": 1},
        "int4": [1, 2],
    }
    assert found["arrays"] == [[1, 2]]
    assert found["full"] == {
        "fields": [["a", 23]],
        "command": "SELECT",
        "rowCount": 2,
        "rowAsArray": False,
        "rows": [{"a": 1}, {"a": 2}],
    }
    assert found["created"] == ["CREATE", None]


def test_errors(found: dict[str, Any]) -> None:
    """A NeonDbError has the server's SQLSTATE and fields; what is no 400 is only a status to the driver."""
    assert found["unique"] == {
        "ours": True,
        "message": 'duplicate key value violates unique constraint "neon_driver_pkey"',
        "code": "23505",
        "constraint": "neon_driver_pkey",
        "detail": "Key (n)=(1) already exists.",
        "severity": "ERROR",
    }
    assert (found["division"]["ours"], found["division"]["code"]) == (True, "22012")
    assert (found["syntax"]["code"], found["syntax"]["position"]) == ("42601", "1")
    password = found["password"]
    assert (password["ours"], password["message"]) == (True, 'password authentication failed for user "app"')
    assert "code" not in password
    assert "HTTP status 507" in found["tooLarge"]["message"]


def test_batch(found: dict[str, Any]) -> None:
    """A batch is one transaction, in the mode that was asked for."""
    assert found["batch"] == [[{"i": "serializable", "r": "on", "d": "on"}], [{"n": 7}]]
    assert found["batchError"]["code"] == "22012"
    assert found["count"] == [{"n": 1}]


def test_sessions(found: dict[str, Any]) -> None:
    """Pool and Client have a session over a WebSocket, with transactions, errors and much data."""
    assert found["inside"] == [{"n": 1}, {"n": 3}]
    assert found["sessionError"] == ["22012", "division by zero"]
    assert found["after"] == [{"n": 1}, {"n": 4}]
    assert found["much"] == [[3_000_000, 3_000_000]]
    assert found["refused"]["code"] == "28P01"


def test_ways(found: dict[str, Any]) -> None:
    """The user's suffix and the port lead to the same servers over both."""
    primary, replica = {"replica": False, "user": "app"}, {"replica": True, "user": "app"}
    assert found["ways"] == found["sockets"] == {"direct": primary, "replica": replica, "write": primary, "read": replica}
