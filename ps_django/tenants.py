"""The tenant of an alias, which backends that are derived from ours keep beside the connection: django-tenants and its kin.

`ENGINE = "django_tenants.postgresql_backend"` with `ORIGINAL_BACKEND = "ps_django.backend"` has `connection.set_tenant()`, and
sends `SET search_path` with each cursor. It keeps a tenant for each alias, and its middleware and contexts set that of one alias,
the primary's: a read that the router sends to a replica's alias would be in `public`. So a replica's alias has no tenant of its
own: it is in its primary's, asked for with each cursor.
"""

from __future__ import annotations

from typing import Any, Final

from django.db import NotSupportedError

from ps_core._documentation import see

__all__ = ["follow", "forget_what_was_set", "keeps_tenant", "tenant_of"]

_CACHE: Final = "search_path_set_schemas"
"""Where the backend remembers what it has set on the connection, and sets no more (TENANT_LIMIT_SET_CALLS)."""


def keeps_tenant(wrapper: Any) -> bool:
    """Return whether the wrapper's class has a tenant beside the connection."""
    return hasattr(wrapper, "set_tenant")


def tenant_of(wrapper: Any) -> tuple[Any, bool] | None:
    """Return the tenant that a wrapper is in, and whether `public` is searched behind its schema; None where it keeps none."""
    return (wrapper.tenant, wrapper.include_public_schema) if keeps_tenant(wrapper) else None


def follow(replica: Any, primary: Any) -> None:
    """Let a replica's wrapper be in the tenant of its primary's.

    Raises:
        NotSupportedError: the replica's wrapper was given another tenant itself. Which one a read is meant for is not known.
    """
    wanted, own = tenant_of(primary), tenant_of(replica)
    if wanted is None or own is None:  # another backend, which `families` refuses
        wrong = f"{replica.alias!r} and its primary {primary.alias!r}: one of them has tenants: write one ENGINE"
        raise see(NotSupportedError(wrong), "NotSupportedError")
    if own[0] is wanted[0] and own[1] is wanted[1]:
        replica.ps_tenant = own
        return
    schemas = [(wrapper.schema_name, wrapper.include_public_schema) for wrapper in (replica, primary)]
    if own != replica.ps_tenant and schemas[0] != schemas[1]:
        wrong = (
            f"{replica.alias!r} was put into the schema {replica.schema_name!r} by itself, and {primary.alias!r} is in"
            f" {primary.schema_name!r}: a replica's alias is always in the tenant of its primary. Set the tenant of"
            f" {primary.alias!r} alone, as in tenant_context(tenant) without database="
        )
        raise see(NotSupportedError(wrong), "NotSupportedError")
    replica.set_tenant(*wanted)
    replica.ps_tenant = wanted


def forget_what_was_set(wrapper: Any) -> None:
    """Let the next cursor set the search path: the connection is another one, or is used by another wrapper as well."""
    if hasattr(wrapper, _CACHE):
        setattr(wrapper, _CACHE, None)
