"""What `django_prometheus.db.backends.postgresql` is, derived from ours."""

from typing import Any

from django_prometheus.db.common import DatabaseWrapperMixin, ExportingCursorWrapper

from ps_django.backend import base


class DatabaseWrapper(DatabaseWrapperMixin, base.DatabaseWrapper):  # type: ignore[misc]
    """Counts connections and statements."""

    def get_connection_params(self) -> dict[str, Any]:
        """Return Django's, with a cursor that counts."""
        params = super().get_connection_params()
        params["cursor_factory"] = ExportingCursorWrapper(params["cursor_factory"], self.alias, self.vendor)
        return params

    def create_cursor(self, name: str | None = None) -> Any:
        """Return Django's, which the connection makes by its `cursor_factory`."""
        return base.DatabaseWrapper.create_cursor(self, name=name)
