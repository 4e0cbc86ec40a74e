"""The demo: a SQLAlchemy application and a Django site at work while their primary changes. What each does is for tests, too."""
