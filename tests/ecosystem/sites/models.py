"""The models of the site are those of its package's module: Django, and packages, look for a module of this name."""

import importlib
import os

importlib.import_module(f"tests.ecosystem.sites.{os.environ['SITE']}")
