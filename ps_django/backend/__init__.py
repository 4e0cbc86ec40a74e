"""`ENGINE = "ps_django.backend"`."""
