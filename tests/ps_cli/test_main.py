"""The command itself: its version, and what completes it in a shell."""

from __future__ import annotations

import subprocess
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest

from ps_cli import completion
from ps_cli.main import main

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.fast


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    """The version is that of what is installed."""
    with pytest.raises(SystemExit) as exited:
        main(["--version"])
    assert (exited.value.code, capsys.readouterr().out) == (0, f"ps-postgres {version('ps-postgres')}\n")


@pytest.mark.parametrize(
    "command", [[], ["lab"], ["lab", "up"], ["doctor"], ["pgbouncer"], ["demo"], ["completion"]], ids=" ".join
)
def test_help_breaks_no_command(command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """What the help says to type stands in one line, however narrow the terminal is: no line ends within a word."""
    for columns in range(50, 110, 3):
        monkeypatch.setenv("COLUMNS", str(columns))
        with pytest.raises(SystemExit):
            main([*command, "--help"])
        assert [line for line in capsys.readouterr().out.splitlines() if line.endswith("-")] == []


def completed(script: str, *words: str) -> set[str]:
    """Return what bash offers for the last of the words."""
    ask = 'eval "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _shtab_ps_postgres; printf "%s\\n" "${COMPREPLY[@]}"'
    done = subprocess.run(["bash", "-c", ask, "bash", script, *words], check=True, capture_output=True, text=True)
    return set(done.stdout.split())


def test_completion_in_bash(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Commands, verbs, options and their values are completed, and paths where an option takes one."""
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    assert completed(script, "ps-postgres", "d") == {"demo", "doctor"}
    assert completed(script, "ps-postgres", "lab", "s") == {"switchover", "status"}
    assert completed(script, "ps-postgres", "demo", "--transport", "w") == {"websocket"}
    (tmp_path / "bouncer").mkdir()
    assert completed(script, "ps-postgres", "pgbouncer", "--output", f"{tmp_path}/b") == {f"{tmp_path}/bouncer"}


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_every_shell_has_a_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each shell that is offered gets a script that knows the commands."""
    assert main(["completion", shell]) == 0
    assert "pgbouncer" in capsys.readouterr().out


def test_completion_without_its_extra(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Where shtab is not installed, the command says which extra has it."""
    monkeypatch.setattr(completion, "find_spec", lambda name: None if name == "shtab" else find_spec(name))
    assert main(["completion", "bash"]) == 2
    assert capsys.readouterr().err == "shtab: not installed; pip install 'ps-postgres[cli]'\n"
