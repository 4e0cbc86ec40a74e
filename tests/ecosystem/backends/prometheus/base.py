"""The backend of docs/howto/derived-backends.md."""

from django_prometheus.db.backends.postgresql import base as prometheus

from ps_django.backend import base


class DatabaseWrapper(prometheus.DatabaseWrapper, base.DatabaseWrapper):  # type: ignore[misc]
    """Counts what is asked of each alias."""
