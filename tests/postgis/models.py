"""A table with what PostGIS has."""

from typing import Any

from django.contrib.gis.db import models


class Shape(models.Model):
    """Each kind of field."""

    name: Any = models.CharField(max_length=50)
    point: Any = models.PointField(null=True)
    flat: Any = models.GeometryField(srid=25833, null=True)
    high: Any = models.LineStringField(dim=3, null=True)
    globe: Any = models.PointField(geography=True, null=True)
    raster: Any = models.RasterField(null=True)

    class Meta:
        """Its name is a test's."""

        app_label = "postgis"
