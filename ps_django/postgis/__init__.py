"""`ENGINE = "ps_django.postgis"`."""
