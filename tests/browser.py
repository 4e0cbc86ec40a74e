"""A browser's cookies, under answers that arrive in an order of the test's own."""

from http.cookies import SimpleCookie


class Browser:
    """Keeps cookies as RFC 6265 says: by name, until Max-Age is over, which here is when it is zero."""

    def __init__(self) -> None:
        self.cookies: dict[str, str] = {}

    @property
    def header(self) -> str:
        """What the next request carries."""
        return "; ".join(f"{name}={value}" for name, value in self.cookies.items())

    def receive(self, *answers: list[str]) -> None:
        """Take the values of Set-Cookie of answers, in the order in which they arrive."""
        for header in (header for answer in answers for header in answer):
            (morsel,) = SimpleCookie(header.replace("; Partitioned", "")).values()
            if str(morsel["max-age"]) == "0":
                self.cookies.pop(morsel.key, None)
            else:
                self.cookies[morsel.key] = morsel.value
