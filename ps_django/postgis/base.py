"""GeoDjango's PostGIS backend over ours. It needs GDAL and GEOS, as GeoDjango does."""

from __future__ import annotations

from typing import Any

from django.contrib.gis.db.backends.postgis import base, schema
from django.db import connections

from ps_django.backend import base as backend

__all__ = ["DatabaseWrapper"]


class DatabaseSchemaEditor(backend.DatabaseSchemaEditor, schema.PostGISSchemaEditor):
    """GeoDjango's, on the direct path."""


class DatabaseWrapper(base.DatabaseWrapper, backend.DatabaseWrapper):
    """GeoDjango's wrapper, which teaches each connection the types of PostGIS, over ours."""

    SchemaEditorClass = DatabaseSchemaEditor
    _type_infos: dict[str, dict[str, Any]]  # Django's: not in the stubs

    def register_geometry_adapters(self, pg_connection: Any, clear_caches: bool = False) -> None:
        """Teach a connection the types; where the extension was made just now (`clear_caches`), all that are open here."""
        if clear_caches:
            for known in self._type_infos.values():
                known.pop(self._ps_primary, None)
        super().register_geometry_adapters(pg_connection, clear_caches)
        if clear_caches:
            for wrapper in connections.all(initialized_only=True):
                if isinstance(wrapper, DatabaseWrapper) and wrapper._ps_primary == self._ps_primary:
                    for connection in wrapper.ps_connections():
                        super().register_geometry_adapters(connection)

    def _register_type(self, pg_connection: Any, typename: str) -> Any:
        # Django keeps by alias what it has learned. What the primary knows holds for its replicas; what one of these does not
        # know, the primary may, and it is asked again. A replica that is behind what the caller has seen is asked all the same.
        known, primary = self._type_infos[typename], self._ps_primary
        if primary in known:
            known[self.alias] = known[primary]
        with pg_connection.asking_anywhere():
            oid = super()._register_type(pg_connection, typename)  # type: ignore[misc]
        if oid is None and primary not in known:
            del known[self.alias]
        return oid

    @property
    def _ps_primary(self) -> str:
        primary: str = self.settings_dict["OPTIONS"].get("ps_primary", self.alias)
        return primary
