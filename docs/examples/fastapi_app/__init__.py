"""A small shop in FastAPI: with SQLAlchemy's asyncio (`app`), and the same with threads (`sync_app`)."""
