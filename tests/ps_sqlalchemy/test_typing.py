"""What type checkers make of an application that uses the public names (`make lint` runs this; it needs the group `dev`)."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONSUMER = Path(__file__).parents[1] / "typing" / "consumer.py"


@pytest.fixture
def consumer(tmp_path: Path) -> Path:
    """The application, where none of this project's settings for type checkers count."""
    return Path(shutil.copy(CONSUMER, tmp_path))


def test_mypy(consumer: Path) -> None:
    """Strict mypy finds nothing, and every mistake that is marked as one."""
    pytest.importorskip("mypy")
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", consumer.name]
    done = subprocess.run(command, cwd=consumer.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Success" in done.stdout


def test_pyright(consumer: Path) -> None:
    """So does strict pyright."""
    pytest.importorskip("pyright")
    settings = {"typeCheckingMode": "strict", "enableTypeIgnoreComments": False, "reportUnnecessaryTypeIgnoreComment": "error"}
    (consumer.parent / "pyrightconfig.json").write_text(json.dumps(settings))
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "--outputjson", consumer.name]
    done = subprocess.run(command, cwd=consumer.parent, capture_output=True, text=True, check=False)
    report = json.loads(done.stdout)
    assert report["summary"]["filesAnalyzed"] == 1
    found = [f"{one['range']['start']['line'] + 1}: {one['message']}" for one in report["generalDiagnostics"]]
    assert not found
