"""Many clients of one pooler, each with settings of its own: none ever has another's.

`PS_STATEMENTS=100000` sends as many; by default it is a tenth.
"""

from __future__ import annotations

import os
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

import ps_core
from ps_lab import Lab

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [pytest.mark.tools, pytest.mark.timeout(600)]

STATEMENTS = int(os.environ.get("PS_STATEMENTS", "10000"))
CLIENTS, FOREIGN = 4, 10
SEES = (
    "SELECT current_setting('search_path'), nullif(current_setting('app.tenant', true), ''), current_user::text,"
    " current_setting('work_mem')"
)
NOTHING = ('"$user", public', None, "app", "4MB")


def tenant(url: str, number: int, count: Callable[[], bool]) -> int:
    """Work as a tenant who sets, resets, commits and rolls back at random; return how often another's was seen."""
    choose = random.Random(number)
    wrong = 0
    with ps_core.connect(url, autocommit=True) as conn:
        held: dict[str, Any] = dict(zip(("path", "tenant", "role", "memory"), NOTHING, strict=True))

        def change() -> None:
            what = choose.randrange(7)
            value = f"t{number}_{choose.randrange(100)}"
            if what == 0:
                conn.execute(f"SET search_path = {value}")
                held["path"] = value
            elif what == 1:
                conn.execute("SELECT set_config('app.tenant', %s, false)", (value,))
                held["tenant"] = value
            elif what == 2:
                conn.execute(f"SET ROLE leak_{number}")
                held["role"] = f"leak_{number}"
            elif what == 3:
                conn.execute(f"SET work_mem = '{100 + number}MB'")
                held["memory"] = f"{100 + number}MB"
            elif what == 4:
                conn.execute("RESET app.tenant")
                held["tenant"] = None
            elif what == 5:
                conn.execute("RESET ROLE")
                held["role"] = "app"
            else:
                conn.execute("SET LOCAL work_mem = '50MB'")  # of no effect outside of a transaction

        def look() -> None:
            nonlocal wrong
            if conn.execute(SEES).fetchone() != tuple(held.values()):
                wrong += 1

        while count():
            if choose.random() < 0.3:
                before = dict(held)
                undone = choose.random() < 0.5
                with conn.transaction(force_rollback=undone):
                    for _ in range(choose.randrange(1, 4)):
                        if choose.random() < 0.6:
                            conn.execute("SELECT 1")
                        what = choose.randrange(3)
                        conn.execute(f"SET app.tenant = 't{number}_{what}'")
                        held["tenant"] = f"t{number}_{what}"
                        look()
                if undone:
                    held |= before
            else:
                change()
            look()
    return wrong


def stranger(dsn: dict[str, Any], over: threading.Event) -> tuple[int, int]:
    """Look on as a client who sets nothing; return how often it looked, and how often it had something."""
    looked = wrong = 0
    with psycopg.connect(**dsn, autocommit=True, prepare_threshold=None) as conn:
        while not over.is_set():
            looked += 1
            wrong += conn.execute(SEES).fetchone() != NOTHING
    return looked, wrong


def test_nobody_has_anothers_settings() -> None:
    """Tenants and strangers share few server connections, which are given out in turn."""
    with Lab(server_round_robin=1, default_pool_size=5) as lab:
        for number in range(CLIENTS):
            lab.sql(f"CREATE ROLE leak_{number}")
            lab.sql(f"GRANT leak_{number} TO app")
        left, lock = [STATEMENTS], threading.Lock()

        def count() -> bool:
            with lock:
                left[0] -= 3  # some three statements a round
                return left[0] > 0

        over = threading.Event()
        with ThreadPoolExecutor(CLIENTS + FOREIGN) as pool:
            strangers = [pool.submit(stranger, ps_core.conninfo(lab.topology.primary), over) for _ in range(FOREIGN)]
            tenants = [pool.submit(tenant, lab.url, number, count) for number in range(CLIENTS)]
            try:
                wrong = [one.result() for one in tenants]
            finally:
                over.set()
            met = [one.result() for one in strangers]
        print(f"{STATEMENTS} statements of {CLIENTS} tenants, {sum(looked for looked, _ in met)} looks of {FOREIGN} strangers")
        assert (wrong, [one for _, one in met]) == ([0] * CLIENTS, [0] * FOREIGN)
