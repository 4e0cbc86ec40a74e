"""The setting `PS_DJANGO`, validated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from django.conf import settings
from django.core.signals import setting_changed
from django.utils.module_loading import import_string

from ps_core._names import no_such
from ps_core._propagation import Propagator, wanted_by_browsers
from ps_core.errors import ConfigurationError
from ps_core.tags import check_tags
from ps_core.timeouts import Duration, parse_duration
from ps_django.command_limits import USUAL, CommandLimits

if TYPE_CHECKING:
    from collections.abc import Callable

    from django.http import HttpRequest

__all__ = ["Settings", "current_settings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """`PS_DJANGO = {"READS": "replica", ...}`: the fields in upper case.

    Raises:
        ConfigurationError: a value that cannot work, or an unknown key.
    """

    reads: Literal["primary", "replica"] = "primary"
    """Where reads go that nothing says more about: commands, tasks, the shell, requests without the middleware."""
    deadline: Duration | None = None
    """The deadline of each request, for `DeadlineMiddleware`."""
    stale_writes: Literal["warn", "refuse", "allow"] = "warn"
    """What to do where all fields of an instance are saved that was loaded from a replica: it may overwrite what is newer."""
    cookie: str | None = "ps_token"
    """The name of the cookies in which `ConsistencyMiddleware` keeps the token: this one for what was read, and this one with `_`
    and 8 hexadecimal digits behind it for what was written. None: no cookies. A name may begin with `__Host-` or `__Secure-`."""
    cookie_partitioned: bool = False
    """Whether the cookies have the attribute Partitioned, for sites that are embedded in others."""
    header: str | None = None
    """A header of requests and responses that carries it as well, for clients without cookies."""
    local_settings: str | None = None
    """For `LocalSettingsMiddleware`: the dotted path of a function that returns a request's settings ({"app.tenant": "42"})."""

    tags: Mapping[str, str | Callable[[HttpRequest], str | None]] | None = None
    """For `TagsMiddleware`: what statements tell beside the request's route and view; None: nothing at all."""
    command_limits: CommandLimits = USUAL
    """The limits of management commands from a command line: "off", "request" (those that requests have), or a mapping
    of limits (`statement`, `transaction`, `idle_in_transaction`, `lock`), and of commands by name with a value of these kinds."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "command_limits", CommandLimits.parse(self.command_limits))
        check_tags(self.tags or {})
        for name, words in (("reads", ("primary", "replica")), ("stale_writes", ("warn", "refuse", "allow"))):
            if getattr(self, name) not in words:
                raise ConfigurationError(f"PS_DJANGO[{name.upper()!r}]: write one of {words}, not {getattr(self, name)!r}")
        try:
            Propagator(keys=["any"], cookie=self.cookie, header=self.header)
        except ConfigurationError as exc:
            raise ConfigurationError(f"PS_DJANGO: {exc}") from exc
        self._check_cookie(self.cookie or "")
        if self.deadline is not None:
            object.__setattr__(self, "deadline", parse_duration(self.deadline, name="PS_DJANGO['DEADLINE']"))
        if self.local_settings is not None:
            try:
                function = import_string(self.local_settings)
            except (ImportError, AttributeError) as exc:
                raise ConfigurationError(
                    f"PS_DJANGO['LOCAL_SETTINGS']: write a function's dotted path, not {self.local_settings!r}: {exc}"
                ) from exc
            if not callable(function):
                raise ConfigurationError(
                    f"PS_DJANGO['LOCAL_SETTINGS']: {self.local_settings!r} leads to {function!r}: write a function's"
                )

    def _check_cookie(self, name: str) -> None:
        wanted = wanted_by_browsers(
            name,
            secure=settings.SESSION_COOKIE_SECURE,
            path=settings.SESSION_COOKIE_PATH,
            domain=settings.SESSION_COOKIE_DOMAIN,
            cross_site=self.cookie_partitioned or (str(settings.SESSION_COOKIE_SAMESITE).lower() == "none" and bool(name)),
        )
        if wanted:
            write = {
                "Secure": "SESSION_COOKIE_SECURE = True",
                "Path=/": 'SESSION_COOKIE_PATH = "/"',
                "no Domain": "SESSION_COOKIE_DOMAIN = None",
            }
            raise ConfigurationError(
                f"PS_DJANGO['COOKIE']: the cookie {name!r} has the attributes of the session's, and browsers take it only with"
                f" {', '.join(wanted)}: write {', '.join(write[each] for each in wanted)}"
            )

    @classmethod
    def parse(cls, given: Mapping[str, Any]) -> Settings:
        """Return what a `PS_DJANGO` says."""
        if not isinstance(given, Mapping):
            raise ConfigurationError(f"PS_DJANGO: write a mapping, as in {{'READS': 'replica'}}, not {given!r}")
        known = [field.name.upper() for field in fields(cls)]
        for name in given:
            if name not in known:
                raise no_such("key", str(name), known, where="PS_DJANGO")
        return cls(**{name.lower(): value for name, value in given.items()})


@lru_cache(maxsize=1)
def current_settings() -> Settings:
    """Return the project's."""
    return Settings.parse(getattr(settings, "PS_DJANGO", {}))


def _forget(*, setting: str = "", **_: Any) -> None:
    if setting == "PS_DJANGO" or setting.startswith("SESSION_COOKIE_"):
        current_settings.cache_clear()


setting_changed.connect(_forget)
