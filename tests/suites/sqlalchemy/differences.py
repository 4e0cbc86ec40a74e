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


SYNC = ("ps",)
_MOCK = (
    "Lets `do_connect`, or the dialect's `connect`, return a Mock; ours refuses a connection that is none of ours: nothing would"
    " bound or heal it."
)
_PROXY = (
    "Puts another `connect` into the driver's module, which returns a proxy of SQLAlchemy's tests; ours refuses a connection that"
    " is none of ours: nothing would bound or heal it."
)
_EXECUTE = "test/engine/test_execute.py::DialectEventTest"
_PING = "test/engine/test_reconnect.py::RealPrePingEventHandlerTest"

DIFFERENCES = {
    f"{_EXECUTE}::test_connect_do_connect": Difference(_MOCK),
    f"{_EXECUTE}::test_connect_do_connect_no_cargs_cparams_leak_nullpool": Difference(_MOCK),
    f"{_EXECUTE}::test_connect_replace_params": Difference(_MOCK),
    f"{_PING}::test_control": Difference(_PROXY),
    f"{_PING}::test_downgrade_control": Difference(_PROXY, SYNC),
    f"{_PING}::test_event_handler_can_downgrade_disconnect": Difference(_PROXY),
    f"{_PING}::test_event_handler_can_upgrade_disconnect": Difference(_PROXY, SYNC),
    f"{_PING}::test_event_handler_didnt_downgrade_disconnect": Difference(_PROXY, SYNC),
    f"{_PING}::test_event_handler_didnt_upgrade_disconnect": Difference(_PROXY),
}
"""By the name of the test, without what is said of dialect and version in the name of its class."""

HTTPS = ("ps_http_writing",)
_ROLLBACK = (
    "What was written cannot be rolled back, nor is a connection in AUTOCOMMIT or not: each statement is a request by itself."
)
_NO_CURSOR = (
    "Looks whether the driver's cursor has a name; over HTTPS there is none of the server's, and the rows are there at once."
)
_AUTOCOMMIT = "suite.py::AutocommitIsolationTest"
_CURSORS = "suite.py::ServerSideCursorsTest"

OF_HTTPS = {
    f"{_AUTOCOMMIT}::test_autocommit_block[block_rollback-false]": Difference(_ROLLBACK, HTTPS),
    f"{_AUTOCOMMIT}::test_autocommit_block[not_block_rollback-false]": Difference(_ROLLBACK, HTTPS),
    f"{_AUTOCOMMIT}::test_autocommit_off": Difference(_ROLLBACK, HTTPS),
    f"{_AUTOCOMMIT}::test_autocommit_on": Difference(_ROLLBACK, HTTPS),
    f"{_AUTOCOMMIT}::test_dialect_autocommit_is_restored[not_use_dialect_setting]": Difference(_ROLLBACK, HTTPS),
    f"{_AUTOCOMMIT}::test_dialect_autocommit_is_restored[use_dialect_setting]": Difference(_ROLLBACK, HTTPS),
    f"{_AUTOCOMMIT}::test_turn_autocommit_off_via_default_iso_level": Difference(_ROLLBACK, HTTPS),
    "suite.py::NumericTest::test_infinity_floats": Difference(
        "Succeeds, which SQLAlchemy's own requirements expect of `postgresql+psycopg` alone.", HTTPS
    ),
    f"{_CURSORS}::test_conn_option": Difference(_NO_CURSOR, HTTPS),
    **{
        f"{_CURSORS}::test_ss_cursor_status[{name}]": Difference(_NO_CURSOR, HTTPS)
        for name in (
            *("for_update_expr", "for_update_string", "global_expr", "global_string", "global_text", "stmt_option"),
            "text_ss_option",
        )
    },
}
"""The same of the suite for dialects, over HTTPS."""
