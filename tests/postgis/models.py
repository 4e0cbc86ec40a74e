"""A table with what PostGIS has."""

from django.contrib.gis.db import models


class Shape(models.Model):
    """Each kind of field."""

    name = models.CharField(max_length=50)
    point = models.PointField(null=True)
    flat = models.GeometryField(srid=25833, null=True)
    high = models.LineStringField(dim=3, null=True)
    globe = models.PointField(geography=True, null=True)
    raster = models.RasterField(null=True)

    class Meta:
        """Its name is a test's."""

        app_label = "postgis"
