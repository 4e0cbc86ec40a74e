"""Unknown names: refused wherever settings are given, with the one that was probably meant."""

from collections.abc import Iterable
from difflib import get_close_matches

from ps_core._plain_errors import UnknownSetting

__all__ = ["given_to_complete", "nearest", "no_such"]


def nearest(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """Return the known name that is most like `name`, in whatever case; None where none is (`difflib`'s ratio below `cutoff`)."""
    folded = {one.casefold(): one for one in known}
    found = get_close_matches(name.casefold(), folded, n=1, cutoff=cutoff)
    return folded[found[0]] if found else None


def no_such(
    what: str, name: str, known: Iterable[str], *, where: str = "", prefix: str = "", otherwise: str = ""
) -> UnknownSetting:
    """Return the error for a name that is not `known`.

    Where no known one is near to it, the message says `otherwise`, or lists the known ones. `what` is what the name should
    be ("setting"), `where` the place where it stands, `prefix` what is before it, and before the known ones.
    """
    known = list(known)
    near = nearest(name, known)
    if near is not None:
        advice = f"did you mean {prefix}{near}?"
    else:
        advice = otherwise or f"write one of {', '.join(prefix + one for one in known)}"
    return UnknownSetting(f"{where and where + ': '}there is no {what} {prefix}{name}: {advice}")


def given_to_complete(target: object, names: Iterable[str]) -> UnknownSetting:
    """Return the error for settings that are given beside a `Topology` or an `Endpoint`, which has its own."""
    kind = type(target).__name__
    article = "an" if kind[0] in "AEIOU" else "a"
    return UnknownSetting(f"{article} {kind} is complete: give {', '.join(names)} to Topology.from_url instead")
