"""The fixture `ps_lab`: a local PlanetScale."""

pytest_plugins = ("ps_lab.plugin",)
