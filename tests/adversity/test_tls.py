"""Certificates and options that do not fit: settings, not outages."""

from pathlib import Path as File

import pytest
import trustme

from ps_core.failures import classify
from tests.adversity.harness import Paths, raised
from tests.adversity.matrix import Matrix


@pytest.mark.parametrize("mistake", ["unknown authority", "no such file", "wrong host"])
def test_tls(paths: Paths, matrix: Matrix, mistake: str, tmp_path: File) -> None:
    """What TLS refuses is told at once, and not tried again."""
    foreign = tmp_path / "ca.pem"
    trustme.CA().cert_pem.write_to_path(str(foreign))
    options = {
        "unknown authority": {"sslrootcert": str(foreign)},
        "no such file": {"sslrootcert": str(tmp_path / "nothing.pem")},
        "wrong host": {"host": "elsewhere.example", "hostaddr": "127.0.0.1"},
    }[mistake]
    error = raised(lambda: paths.stock("direct", **options))
    link = paths.link("direct")
    ours = raised(lambda: paths.ours(link, **options))
    assert classify(ours).rule == "client_tls_or_option"
    assert not link.gate.closed
    matrix.add(
        f"TLS: {mistake}", "direct", "connecting", classify(error), "client_tls_or_option", ours="raised", outcome="no connection"
    )
