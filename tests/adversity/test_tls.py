"""Certificates and options that do not fit: settings, not outages."""

import re
from functools import partial
from pathlib import Path as File

import pytest
import trustme

from ps_core.failures import classify
from ps_lab import Lab
from tests.adversity.applications import at_hand, refused
from tests.adversity.harness import Paths, raised, raised_once
from tests.adversity.matrix import Matrix


@pytest.mark.tcp  # over the WebSocket: tests/ps_core/test_bridge.py
@pytest.mark.parametrize("mistake", ["unknown authority", "no such file", "wrong host"])
def test_tls(ps_lab: Lab, paths: Paths, matrix: Matrix, mistake: str, tmp_path: File) -> None:
    """What TLS refuses is told at once, and not tried again."""
    foreign = tmp_path / "ca.pem"
    trustme.CA().cert_pem.write_to_path(str(foreign))
    options = {
        "unknown authority": {"sslrootcert": str(foreign)},
        "no such file": {"sslrootcert": str(tmp_path / "nothing.pem")},
        "wrong host": {"host": "elsewhere.example", "hostaddr": "127.0.0.1"},
    }[mistake]
    error = raised(lambda: paths.stock("direct", **options))
    state = paths.state("direct")
    ours = raised_once(ps_lab, lambda: paths.ours(state, **options))
    assert classify(ours).rule == "client_tls_or_option"
    assert not state.gate.closed
    matrix.add(
        f"TLS: {mistake}", "direct", "connecting", classify(error), "client_tls_or_option", ours="raised", outcome="no connection"
    )


def test_applications(ps_lab: Lab, matrix: Matrix, site: None, tmp_path: File) -> None:
    """A server whose certificate is not trusted is told at once."""
    foreign = tmp_path / "ca.pem"
    trustme.CA().cert_pem.write_to_path(str(foreign))
    with at_hand(re.sub("sslrootcert=[^&]*", f"sslrootcert={foreign}", ps_lab.url)) as applications:
        for application in applications:
            error = refused(application, partial(application.execute, "SELECT 1", "primary"))
            assert "certificate verify failed" in str(error), application.name
            assert not getattr(error, "__notes__", []), application.name
    matrix.sees("TLS is refused", "an error at once, which says what libpq says of the certificate")
