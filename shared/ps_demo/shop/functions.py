"""What the shop asks of a server, as expressions. No model is imported, so no site has to be set up."""

from django.db.models import BooleanField, Func

__all__ = ["InRecovery"]


class InRecovery(Func):
    """Whether the server that answers is a replica."""

    function = "pg_is_in_recovery"
    output_field = BooleanField()
