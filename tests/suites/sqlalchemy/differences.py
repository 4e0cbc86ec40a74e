"""What of SQLAlchemy's own tests cannot be compared, and what does not end with ours as with stock, and why."""

from dataclasses import dataclass

LACKING = {
    r"::HstoreUpdateTest|ArrayRoundTripTest.*HSTORE": "hstore",
    r"::TwoPhaseCommitTest": "prepared transactions",
    r"::test_array_str_collation": "collation en_US",
}
"""What the lab's PostgreSQL does not have, by the tests that ask for it without looking whether it is there."""


@dataclass(frozen=True)
class Difference:
    """Why one test passes with stock and not with ours."""

    reason: str
    dialects: tuple[str, ...] = ("ps", "ps_async")
    """Those of ours that it is about."""
    defect: bool = False
    """Whether ours is to be mended. Otherwise it is a promise, which the docs state."""


SYNC, ASYNC = ("ps",), ("ps_async",)
_CURSORS = (
    "Sets `cursor_factory`; ours takes any class in transactions and none in autocommit, in which it asks each engine's first"
    " connection."
)
_CLOSED = "Gives the engine a driver of its own (`module=`), which closes what it connected; ours connects without it, so that"
_PATCHED = "Puts another `connect` into the driver's module, whose cursors fail once; ours connects without it, so that"

DIFFERENCES = {
    "test/dialect/postgresql/test_dialect.py::DialectTest::test_ensure_version_is_qualified": Difference(
        "Connects by itself in `do_connect`, with the parameters that it gets; ours leaves the server and the user out of them.",
        defect=True,
    ),
    "test/dialect/postgresql/test_dialect.py::Psycopg3Test::test_client_side_cursor": Difference(_CURSORS, SYNC, defect=True),
    "test/dialect/postgresql/test_dialect.py::Psycopg3Test::test_async_client_side_cursor": Difference(
        _CURSORS, ASYNC, defect=True
    ),
    "test/engine/test_execute.py::EngineEventsTest::test_execution_options_modify_inplace": Difference(
        "Counts the calls of the dialect's `set_connection_execution_options()`; ours has one more, as it asks each engine's"
        " first connection without server-side cursors.",
        defect=True,
    ),
    "test/engine/test_execute.py::HandleErrorTest::test_alter_invalidate_pool_stays_true": Difference(
        "Calls an error of a sound connection a disconnect, and looks whether the pool gives up its other connections, too; ours"
        " leaves it to each to heal, which a sound one does not.",
        defect=True,
    ),
    "test/engine/test_reconnect.py::InvalidateDuringResultTest::test_invalidate_on_results": Difference(
        f"{_CLOSED} its cursor executes once more without an error.", SYNC, defect=True
    ),
    "test/engine/test_reconnect.py::PrePingRealTest::test_pre_ping_db_is_restarted": Difference(
        f"{_CLOSED} the connection from before still works.", SYNC, defect=True
    ),
    "test/engine/test_reconnect.py::PrePingRealTest::test_pre_ping_db_stays_shutdown": Difference(
        f"{_CLOSED} the ping succeeds, and nothing connects anew.", SYNC, defect=True
    ),
    "test/engine/test_reconnect.py::RealPrePingEventHandlerTest::test_control": Difference(
        f"{_PATCHED} the ping succeeds.", SYNC, defect=True
    ),
    "test/engine/test_reconnect.py::RealPrePingEventHandlerTest::test_event_handler_can_downgrade_disconnect": Difference(
        f"{_PATCHED} the ping succeeds, and `handle_error` has no disconnect to call something else.", SYNC, defect=True
    ),
    "test/engine/test_reconnect.py::RealPrePingEventHandlerTest::test_event_handler_didnt_upgrade_disconnect": Difference(
        f"{_PATCHED} the ping succeeds, and `handle_error` hears nothing.", SYNC, defect=True
    ),
    "test/engine/test_reconnect.py::RealReconnectTest::test_close": Difference(
        f"{_CLOSED} the next statement works.", SYNC, defect=True
    ),
    "test/engine/test_reconnect.py::RealReconnectTest::test_ensure_is_disconnect_gets_connection": Difference(
        f"{_CLOSED} the next statement works, and `is_disconnect()` is not asked.", SYNC, defect=True
    ),
    "test/engine/test_reconnect.py::RealReconnectTest::test_multiple_invalidate": Difference(
        f"{_CLOSED} the next statements on both connections work.", SYNC, defect=True
    ),
    "test/engine/test_reconnect.py::RealReconnectTest::test_null_pool": Difference(
        f"{_CLOSED} the next statement works, without a pool as well.", SYNC, defect=True
    ),
    "test/engine/test_reconnect.py::RealReconnectTest::test_reconnect": Difference(
        f"{_CLOSED} the next statement works.", SYNC, defect=True
    ),
    "test/engine/test_reconnect.py::RealReconnectTest::test_with_transaction": Difference(
        f"{_CLOSED} its transaction goes on.", SYNC, defect=True
    ),
}
"""By the name of the test, without what is said of dialect and version in the name of its class."""
