"""Follow a tutorial as its reader would: in an empty folder, with terminals that are shells, in the order of the page.

A block with a file's name as its caption is written; a block with a terminal's is typed into that shell. Lines after `$ ` are
commands, `^C` interrupts, the others were printed: all of it by a command that ends, in this order by one that goes on. `...`
stands for anything. What differs from run to run (times, ports, passwords, large numbers) is compared as such.

`python -m tests.docs.tutorial PAGE CHECKOUT` makes a transcript, in a virtual environment of its own.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from ps_lab.processes import wait_until
from tests.docs.pages import blocks_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tests.docs.pages import Block

_VARYING = (
    (re.compile(r"\d+\.\d+ ?s\b"), "# s"),
    (re.compile(r"PgBouncer \d+\.\d+"), "PgBouncer #"),
    (re.compile(r"(port |localhost:|127\.0\.0\.1:|_port=)\d+"), r"\1#"),
    (re.compile(r"\.[a-z0-9]{12}:pscale_pw_[\w-]+@"), ".#:#@"),
    (re.compile(r"\b\d{1,3}(,\d{3})+|\b\d{3,}\b"), "#"),
)


def _lines(text: str) -> list[str]:
    for varying, name in _VARYING:
        text = varying.sub(name, text)
    return [line.rstrip() for line in text.splitlines() if line.strip()]


def is_shown(shown: str, printed: str, *, whole: bool) -> bool:
    """Return whether what the page shows was printed: the `whole` of it, or lines in this order among others."""
    rest = iter(_lines(printed))
    others_may_follow = not whole
    for line in _lines(shown):
        if line == "...":
            others_may_follow = True
            continue
        wanted = re.compile(".*".join(map(re.escape, line.split("..."))))
        if not any(wanted.fullmatch(found) for found in (rest if others_may_follow else islice(rest, 1))):
            return False
        others_may_follow = not whole
    return others_may_follow or not any(rest)


class Terminal:
    """A shell."""

    def __init__(self, folder: Path, environment: Mapping[str, str], tell: Callable[[str], None], patience: float) -> None:
        self._shell = subprocess.Popen(
            ["bash", "--norc"],
            cwd=folder,
            env={**environment, "COLUMNS": "100", "PYTHONUNBUFFERED": "1"},  # as on a real terminal
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._tell = tell
        self._patience = patience
        self._printed = ""
        """Since the last command, or what was shown last."""
        self._status: int | None = 0
        """The exit status of the last command; None while it goes on."""
        self._began_now = False
        self._write("trap : INT\n")
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._shell.stdout is not None
        for line in self._shell.stdout:
            if line.startswith("exit status "):
                self._status = int(line.split()[-1])
            else:
                self._printed += line
                self._tell(line.rstrip("\n"))

    def type(self, command: str) -> None:
        """Begin a command."""
        wait_until(lambda: self._status is not None, f"the end of what came before {command!r}", timeout=self._patience)
        self._printed, self._status, self._began_now = "", None, True
        self._write(f"{command}\nprintf '\\nexit status %s\\n' $?\n")

    def _write(self, text: str) -> None:
        assert self._shell.stdin is not None
        self._shell.stdin.write(text)
        self._shell.stdin.flush()

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        os.killpg(self._shell.pid, signal.SIGINT)

    def shows(self, text: str) -> None:
        """Wait until `text` was printed, or the command ended: with status 0, and with nothing else if it began just now."""

        def is_shown_now() -> bool:
            return bool(text.strip()) and is_shown(text, self._printed, whole=False)

        try:
            wait_until(lambda: self._status is not None or is_shown_now(), text, timeout=self._patience)
        except TimeoutError:
            raise AssertionError(f"not printed:\n{text}\nbut:\n{self._printed}") from None
        assert not self._status, self._printed
        whole = self._began_now and self._status is not None
        assert is_shown(text, self._printed, whole=whole), f"not printed:\n{text}\nbut:\n{self._printed}"
        self._printed, self._began_now = "", False

    def close(self) -> None:
        """End the shell and what it runs."""
        os.killpg(self._shell.pid, signal.SIGTERM)
        self._reader.join()
        self._shell.communicate()


def follow(
    page: Path,
    folder: Path,
    environment: Mapping[str, str],
    replaced: Mapping[str, str],
    tell: Callable[[str], None] = lambda _: None,
    patience: float = 60.0,
) -> None:
    """Do all that the page says in `folder`.

    `replaced` has what is typed in the place of parts of commands; `patience` is how many seconds a command may take.

    Raises:
        AssertionError: something else was printed than the page shows.
    """
    terminals: dict[str, Terminal] = {}
    exports: dict[str, str] = {}

    def printed(name: str) -> Callable[[str], None]:
        def note(line: str) -> None:
            if line.startswith("export "):
                exports[line.partition("=")[0]] = line
            tell(f"{name} | {line}")

        return note

    try:
        for block in blocks_of(page):
            if block.language == "console":
                if block.caption not in terminals:
                    terminals[block.caption] = Terminal(folder, environment, printed(block.caption), patience)
                _type(terminals[block.caption], block, exports.get, replaced, tell)
            elif block.caption:
                tell(f"{'-' * 20} {block.caption}\n{block.text}{'-' * 20}")
                _write(folder, block)
    finally:
        for terminal in terminals.values():
            terminal.close()


def _write(folder: Path, block: Block) -> None:
    name, _, where = block.caption.partition(", ")
    file = folder / name
    file.parent.mkdir(exist_ok=True, parents=True)
    with file.open("a" if where == "at the end" else "w") as opened:
        opened.write(block.text)


def _type(
    terminal: Terminal,
    block: Block,
    exported: Callable[[str], str | None],
    replaced: Mapping[str, str],
    tell: Callable[[str], None],
) -> None:
    for part in re.split(r"^(?=\$ |\^C)", block.text, flags=re.MULTILINE):
        first, _, rest = part.partition("\n")
        if first == "^C":
            tell(f"{block.caption} | ^C")
            terminal.interrupt()
        elif first.startswith("$ "):
            command = exported(first[2:].partition("=")[0]) or first[2:]
            for part_of_it, instead in replaced.items():
                command = command.replace(part_of_it, instead)
            tell(f"{block.caption} | $ {command}")
            terminal.type(command)
        else:
            rest = part
        if part:
            terminal.shows(rest)


def main(page: str, checkout: str) -> None:
    """Follow a page with a virtual environment of its own, and print what happens."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "shop")
        folder.mkdir()
        state = Path(name, "run")
        state.mkdir(mode=0o700)
        path = os.pathsep.join(part for part in os.environ["PATH"].split(os.pathsep) if part != str(Path(sys.executable).parent))
        environment = {
            "PATH": path,
            "HOME": os.environ["HOME"],
            "XDG_RUNTIME_DIR": str(state),
            "LANG": "C.UTF-8",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        }
        replaced = {"python3 ": f"{sys.executable} ", "pip install 'ps-postgres": f"pip install -qqq '{checkout}"}
        follow(Path(page), folder, environment, replaced, print, patience=600.0)


if __name__ == "__main__":
    main(*sys.argv[1:])
