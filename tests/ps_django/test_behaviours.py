"""What users of other routers, wrappers and retry helpers rely on: a numbered list, and the test of each in Django."""

import threading
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import psycopg
import pytest
from django.db import DataError, IntegrityError, connections, transaction
from django.db.models import F

import ps_django
from ps_core import use_token
from ps_django.transaction import run_transaction
from ps_lab import Lab
from tests.ps_django.test_settings import another, ask, transaction_on

BEHAVIOURS = {
    "1: reads to replicas, writes to the primary, no migrations on replicas, relations between any two": """
        test_routing.test_in_a_reading_context test_routing.test_relations_across_the_endpoints
        test_routing.test_migrations_are_for_the_primary test_routing.test_many_to_many_and_generic_relations""",
    "2: pins nest and restore, also on exceptions, as decorators too, and are a thread's own": """
        test_routing.test_blocks_nest test_routing.test_threads""",
    "3: a request starts clean": "test_middleware.test_requests_begin_clean",
    "4: who wrote gets a marker, who only read gets none; its attributes can be set; any status": """
        test_middleware.test_no_cookie_for_those_who_only_read test_middleware.test_cookie_only_where_there_is_news
        test_middleware.test_cookie_attributes test_migrating.test_status_codes""",
    "5: a view, or a header, can say otherwise": """
        test_middleware.test_views_may_say_otherwise test_middleware.test_exempt_views test_migrating.test_overrides""",
    "6: without a marker reads go to replicas; by method": "test_middleware.test_methods test_middleware.test_header",
    "7: the marker is written even where the view raises": "test_middleware.test_cookie_goes_out_with_an_error",
    "8: a reading role and writes": """
        test_migrating.test_check_state_on_write test_consistency.test_reading_on_the_replica_alias_inside_atomic""",
    "9: sticking by WAL position": """
        test_consistency.test_next_request_sees_the_write_of_the_last_one test_requests.test_behind
        test_middleware.test_sessions_and_users""",
    "10: locks and writes to the primary, a transaction on one host": """
        test_routing.test_in_a_reading_context test_consistency.test_hidden_write_runs_once_on_the_primary""",
    "11: writes that do not stick": "test_routing.test_without_sticky_writes",
    "12: a dead replica is left out, then comes back": """
        test_routing.test_lost_replicas_are_replaced_by_the_primary test_migrating.test_dead_replica test_routing.test_weights""",
    "13: a conflict with recovery is a retry": "adversity.test_recovery_conflict.test_applications",
    "14: unrelated errors are raised at once": "test_behaviours.test_unrelated_errors",
    "15: nothing goes on silently inside atomic(); a first connect inside it is allowed": """
        test_settings.test_lost_inside_atomic test_first_path.test_connection_closed_loop_is_gone
        test_behaviours.test_first_connect_inside_atomic""",
    "16: reconnecting has nothing to set, and its errors are the driver's": """
        test_behaviours.test_unrelated_errors test_checks.test_no_rights_and_no_answer""",
    "17: a failover in a transaction says so, and outside is not noticed": """
        test_change_of_primary.test_requests_go_through_a_change_of_the_primary test_settings.test_lost_inside_atomic""",
    "18: going read-only inside a transaction changes nothing": "test_behaviours.test_blocks_inside_atomic",
    "19: a session's state is the new link's, too": "test_behaviours.test_settings_of_a_new_link",
    "20: errors keep their class": "test_behaviours.test_errors_keep_their_class",
    "21: run_transaction": """
        test_consistency.test_run_transaction test_settings.test_run_transaction_as_a_decorator
        test_behaviours.test_competing_transfers""",
    "22: pools": "test_settings.test_pool test_settings.test_fork_with_a_pool",
}


def test_every_behaviour_has_its_test() -> None:
    """The numbers are without a gap, and each test that is named is there."""
    assert [int(title.split(":")[0]) for title in BEHAVIOURS] == list(range(1, 23))
    for names in BEHAVIOURS.values():
        for name in names.split():
            module, function = name.rsplit(".", 1)
            path = f"tests.{module}" if "." in module else f"tests.ps_django.{module}"
            assert callable(getattr(import_module(path), function))


@pytest.fixture
def shop(ps_lab: Lab) -> Iterator[Any]:
    """Products, on the replicas too."""
    from django_shop.shop.models import Product

    Product.objects.all().delete()
    Product.objects.bulk_create(Product(name=f"cup {number}", price=1, stock=100) for number in range(50))
    ps_lab.wait_replicas_caught_up()
    with use_token(None):
        yield Product
    Product.objects.all().delete()


def test_unrelated_errors(ps_lab: Lab) -> None:
    """14, 16. What no other try would mend is raised after one round trip, by run_transaction after one call."""
    calls = []

    def work() -> None:
        calls.append(1)
        ask(connections["default"], "SELECT 1 / 0")

    with ps_lab.round_trips() as trips, pytest.raises(DataError):
        ask(connections["default"], "SELECT 1 / 0")
    assert trips.count == 1
    with pytest.raises(DataError):
        run_transaction(work)
    assert len(calls) == 1


def test_first_connect_inside_atomic(ps_lab: Lab, shop: Any) -> None:
    """15. A connection that is not yet there, or was lost before the block's first statement, is made in the block."""
    connections["default"].close()
    with transaction.atomic():
        assert shop.objects.count() == 50
    ps_lab.edge.cut("primary")
    with transaction.atomic():
        assert shop.objects.count() == 50


def test_blocks_inside_atomic(shop: Any) -> None:
    """18. Inside atomic on the primary, a block for replicas leaves the reads where the transaction is."""
    with transaction.atomic():
        shop.objects.update(stock=7)
        for block in (ps_django.reading, ps_django.using_replica):
            with block():
                assert set(shop.objects.values_list("stock", flat=True)) == {7}


def test_settings_of_a_new_link(ps_lab: Lab) -> None:
    """19. What the settings say of a session holds on the connection that replaces a lost one."""
    level = psycopg.IsolationLevel.REPEATABLE_READ
    with another("default", TIME_ZONE="Asia/Kathmandu", OPTIONS={"isolation_level": level}) as connection:
        for _ in range(2):
            with transaction_on(connection):
                assert ask(connection, "SELECT current_setting('transaction_isolation'), current_setting('TimeZone')") == (
                    "repeatable read",
                    "Asia/Kathmandu",
                )
            ps_lab.edge.cut("primary")


def test_errors_keep_their_class(shop: Any) -> None:
    """20. Errors of the server keep Django's class, the driver's and its diagnostics (the AWS wrapper fails this)."""
    one = shop.objects.first()
    for _ in range(2):
        with pytest.raises(IntegrityError) as failure:
            shop.objects.create(pk=one.pk, name="twice", price=1, stock=1)
        cause = failure.value.__cause__
        assert isinstance(cause, psycopg.errors.UniqueViolation)
        assert cause.diag.constraint_name == "shop_product_pkey"


def test_competing_transfers(shop: Any) -> None:
    """21. Transfers that deadlock or conflict run again, and all of them are there once."""
    one, two = shop.objects.all()[:2]
    entered = threading.Barrier(2, timeout=20)

    def transfer(first: Any, second: Any) -> None:
        attempts = []

        def work() -> None:
            attempts.append(1)
            shop.objects.filter(pk=first.pk).update(stock=F("stock") - 1)
            if len(attempts) == 1:
                entered.wait()  # each holds what the other wants next
            shop.objects.filter(pk=second.pk).update(stock=F("stock") + 1)

        try:
            run_transaction(work)
            tries.append(len(attempts))
        finally:
            connections.close_all()

    tries: list[int] = []
    threads = [threading.Thread(target=transfer, args=pair) for pair in ((one, two), (two, one))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(40)
    assert sorted(tries) == [1, 2]
    assert set(shop.objects.values_list("stock", flat=True)) == {100}
