"""How Sphinx builds these pages: `make docs`. Needs no network."""

from __future__ import annotations

import sys
from importlib.metadata import version as version_of
from pathlib import Path
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any

import django
from django.conf import settings
from sphinx.ext.napoleon import GoogleDocstring

import ps_core
import ps_django
import ps_lab
import ps_sqlalchemy

if TYPE_CHECKING:
    from docutils.nodes import Element
    from sphinx.addnodes import pending_xref
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

# What is read of ps_django imports Django's models.
settings.configure()
django.setup()

project = "ps-postgres"
version = release = version_of("ps-postgres")
language = "en"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_copybutton", "tables"]
exclude_patterns = ["_build", "_ext", "examples"]

html_theme = "furo"
html_title = f"ps-postgres {release}"
html_copy_source = False
html_show_copyright = False
html_static_path = ["_static"]
html_css_files = ["wide.css"]

myst_enable_extensions = ["attrs_inline", "deflist"]
myst_heading_anchors = 3
copybutton_exclude = ".linenos, .gp, .go"  # prompts and output are not copied

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
default_role = "py:obj"  # what stands between single backticks in a docstring
# Names of other projects, and code between backticks. What is ours, by its full name, has to be documented.
nitpick_ignore_regex = [
    ("py:.*", r"(?!ps_(?:core|sqlalchemy|django|lab)\.).*"),
    ("py:class", r".*\.[A-Z]"),
]  # `V`: type variables

MODULES = {
    f"{package.__name__}.{module.name}"
    for package in (ps_core, ps_django, ps_lab, ps_sqlalchemy)
    for module in iter_modules(package.__path__)
}
PUBLIC = {name: package.__name__ for package in (ps_django, ps_lab, ps_sqlalchemy, ps_core) for name in package.__all__}
"""Where each public name is documented: in `ps_core`, where several packages offer it."""


def resolve(app: Sphinx, env: BuildEnvironment, node: pending_xref, contnode: Element) -> Element | None:
    """Link a public name that was written without its package, or with the module that it is made in."""
    if node.get("refdomain") != "py":
        return None
    if node["reftarget"] in MODULES:
        return contnode  # documented by what is public in it
    names = node["reftarget"].removesuffix("()").split(".")
    if names[0].startswith("ps_"):
        names = names[next((n for n, name in enumerate(names) if name in PUBLIC), 0) :]
    if names[0] not in PUBLIC:
        return None
    target = ".".join([PUBLIC[names[0]], *names])
    found: Element | None = env.domains["py"].resolve_xref(env, node["refdoc"], app.builder, "obj", target, node, contnode)
    return found


def read_sections(app: Sphinx, what: str, name: str, obj: object, options: Any, lines: list[str]) -> None:
    """Read "Raises:" and "Args:". Not by Napoleon as an extension: a colon in an attribute's docstring ends a type there."""
    if what not in ("attribute", "property"):
        lines[:] = GoogleDocstring(lines, what=what).lines()


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("missing-reference", resolve)
    app.connect("autodoc-process-docstring", read_sections)
