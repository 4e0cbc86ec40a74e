"""SQLAlchemy's compliance suite for dialects."""
