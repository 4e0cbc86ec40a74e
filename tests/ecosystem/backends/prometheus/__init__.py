"""django-prometheus."""
