"""One module for each package: its site's models and views, and `work`, which does once what the package is for.

A module is loaded as the models of an application, so that all of a site is in one file. `work` returns what came of it, which
has to be the same each time: calm, on replicas that are late, while the primary changes, and with Django's own backend.
Where a module has `running`, its block lasts as long as the site.
"""
