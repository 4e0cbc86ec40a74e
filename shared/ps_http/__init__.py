"""SQL over HTTPS: one round trip, also cold. For functions that answer a request and are frozen or gone.

>>> from ps_http import Client  # doctest: +SKIP
>>> client = Client("postgresql://...")  # doctest: +SKIP
>>> client.execute("select name from users where id = %s", [1]).scalar()  # doctest: +SKIP
'Ada'
"""

from typing import TYPE_CHECKING, Any

from ps_http.client import AsyncBatch, AsyncClient, Batch, Client
from ps_http.result import Pending, Result

if TYPE_CHECKING:
    from ps_http.errors import HttpError

__all__ = ["AsyncBatch", "AsyncClient", "Batch", "Client", "HttpError", "Pending", "Result"]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name == "HttpError":  # it is one of psycopg's, which is left until something fails
            from ps_http.errors import HttpError

            return HttpError
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
