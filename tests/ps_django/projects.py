"""Projects of their own, in processes of their own."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

MANAGE = """
import multiprocessing, os, sys
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project")
from django.core.management import execute_from_command_line
if __name__ == "__main__":
    if "START" in os.environ:
        multiprocessing.set_start_method(os.environ["START"])
    execute_from_command_line(sys.argv)
"""


def write(folder: Path, files: dict[str, str]) -> Path:
    """Write files by their paths, with the packages that they are in; return the folder."""
    for name, text in {"manage.py": MANAGE, **files}.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        for package in file.relative_to(folder).parents[:-1]:
            (folder / package / "__init__.py").touch()
    return folder


def start(folder: Path, *command: str, stdin: Any = None, **environment: str) -> "subprocess.Popen[str]":
    """Start Python with a command there; `stdin=subprocess.PIPE` is for talking to it."""
    paths = os.pathsep.join([str(folder), *(path for path in sys.path if path)])
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": paths, "DJANGO_SETTINGS_MODULE": "project", **environment},
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def result(process: "subprocess.Popen[str]") -> tuple[str, str]:
    """Return what a process printed, and its errors; it has to end well."""
    try:
        out, err = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
    assert process.returncode == 0, out + err
    return out, err
