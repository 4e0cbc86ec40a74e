"""The demo: a bank, in SQLAlchemy and in Django, at work while its primary changes. The bank is for tests, too."""
