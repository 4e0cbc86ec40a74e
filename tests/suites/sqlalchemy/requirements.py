"""SQLAlchemy's own requirements of `postgresql+psycopg`, less what a transaction pooler cannot give."""

from sqlalchemy.testing.exclusions import closed

# SQLAlchemy's own package of tests, which `__main__` puts before the standard library's of that name.
from test.requirements import DefaultRequirements  # type: ignore[import-not-found]

_CLOSED = closed()  # type: ignore[no-untyped-call]


class Requirements(DefaultRequirements):  # type: ignore[misc]
    """Closed: temporary tables, and a search path that is set for the session."""

    temporary_tables = _CLOSED
    temp_table_names = _CLOSED
    has_temp_table = _CLOSED
    temporary_views = _CLOSED
    temp_table_comment_reflection = _CLOSED
    temp_table_reflect_indexes = _CLOSED
    create_temp_table_as = _CLOSED
    default_schema_name_switch = _CLOSED
