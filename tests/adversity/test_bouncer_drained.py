"""PgBouncers are shut down gently, by SIGINT and SIGTERM, whose meaning differs between releases."""

import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress

import pytest

from ps_lab import Lab
from ps_lab.processes import wait_until
from tests.adversity.harness import READ_ONLY, Crowd, Met, Ours, Phase, Row, Rules, Verdict, table
from tests.adversity.matrix import Matrix

END: Verdict = (Ours.AGAIN, Ours.UNNOTICED)
# Up to 1.22, SIGTERM is immediate; from 1.23 on, clients that are there go on being served. SIGINT lets running transactions
# end; idle clients then hang until the process is gone, or hear "server shutting down" from 1.23 on.
IDLE: Rules = ("connection_lost", "pooler_shutdown", "results_hidden_by_driver", None)
BUSY: Rules = ("connection_lost", None)
PHASES: dict[Phase, tuple[Rules, Verdict]] = {
    Phase.CONNECT: (("edge_upstream", "connection_lost", "connect_failed"), Ours.AGAIN),
    Phase.IDLE_READ: (IDLE, END),
    # One that was taken by a bouncer which then ends may have run, as far as anybody can tell.
    Phase.IDLE_WRITE: (IDLE, (Ours.AGAIN, Ours.UNNOTICED, Ours.RAISED)),
    Phase.IDLE_OPENING: (IDLE, END),
    Phase.READ: (BUSY, END),
    Phase.WRITE: (BUSY, (Ours.RAISED, Ours.UNNOTICED)),
    Phase.OPENING: (BUSY, END),
    Phase.IN_TRANSACTION: (BUSY, (Ours.RAISED, Ours.UNNOTICED)),
    Phase.LATER: (BUSY, (Ours.RAISED, Ours.UNNOTICED)),
    Phase.COMMIT: (BUSY, Ours.UNNOTICED),
}
REPLICA = {phase: PHASES[phase] for phase in READ_ONLY} | dict.fromkeys(
    (Phase.OPENING, Phase.IN_TRANSACTION, Phase.LATER), (IDLE, END)
)


def telling(how: signal.Signals) -> Callable[[Crowd], AbstractContextManager[None]]:
    """Return the fault: dedicated bouncers are told to end, and new ones are started when everybody has met that."""

    @contextmanager
    def fault(crowd: Crowd) -> Iterator[None]:
        bouncers = [crowd.lab.bouncers[name] for name in ("write-pool", "read-pool")]
        for bouncer in bouncers:
            bouncer.signal(how)
        with suppress(TimeoutError):
            wait_until(lambda: not any(bouncer.running for bouncer in bouncers), "its end, where that is at once", timeout=0.5)
        crowd.release()
        yield
        for bouncer in bouncers:
            bouncer.stop()
            bouncer.start()

    return fault


@pytest.fixture(scope="module", params=[signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def met(ps_lab: Lab, request: pytest.FixtureRequest) -> Met:
    crowd = Crowd(ps_lab, {"primary": tuple(Phase), "replica": READ_ONLY}, patience=1.5)
    return crowd.run(f"Dedicated bouncers are told to end ({request.param.name})", telling(request.param))


@pytest.mark.parametrize("row", table("primary", PHASES) + table("replica", REPLICA))
def test_bouncer_drained(met: Met, matrix: Matrix, row: Row) -> None:
    """Whatever a release makes of the signal, idle connections and reads go on with the new process."""
    matrix.crowd(met, row)


def test_users(met: Met, matrix: Matrix) -> None:
    """Applications go on with the new process."""
    matrix.sees(met.event, f"a wait until the new one serves; {met.users.saw()}")
