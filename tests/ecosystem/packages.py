"""The packages, and what their sites need: a table."""

import sys
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """A package, or several that are used together."""

    distributions: tuple[str, ...]
    does: str
    """What its site does, for the page."""
    ci: bool = True
    """Whether CI runs it."""
    program: str = "tests.ecosystem.site"
    """What runs its module: a site of Django's, or `tests.ecosystem.script`."""
    replicas: bool = True
    """Whether it reads on replicas."""
    apps: tuple[str, ...] = ()
    middleware: tuple[str, ...] = ()
    routers: tuple[str, ...] = ()
    urls: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    settings_of_ours: dict[str, Any] = field(default_factory=dict)
    extensions: tuple[str, ...] = ()
    """PostgreSQL's extensions that the package needs."""
    engines: tuple[str, str] | None = None
    """A backend of the package's: the one that is derived from Django's, and the one from ours."""
    differs: dict[str, Any] = field(default_factory=dict)
    """What comes out otherwise on ours than on stock, as it has to."""
    late: dict[str, Any] = field(default_factory=dict)
    """What comes out otherwise while replicas are late, and may while the primary changes."""
    note: str = ""
    """What else there is to know, for the page."""
    write: str = ""
    """What has to be set on ours alone, for the page."""


PACKAGES = {
    "rest_framework": Package(
        distributions=("djangorestframework", "django-filter"),
        does="an API: objects made, changed and deleted by POST, PATCH and DELETE; lists filtered, searched, ordered and paged",
        apps=("rest_framework", "django_filters"),
        settings={
            "REST_FRAMEWORK": {
                "DEFAULT_AUTHENTICATION_CLASSES": ["rest_framework.authentication.SessionAuthentication"],
                "DEFAULT_PERMISSION_CLASSES": [],
            }
        },
    ),
    "allauth": Package(
        distributions=("django-allauth",),
        does="sign-up, the mail's link confirmed, log-out, log-in, a new password",
        apps=("allauth", "allauth.account"),
        middleware=("allauth.account.middleware.AccountMiddleware",),
        urls={"accounts/": "allauth.urls"},
        settings={
            "AUTHENTICATION_BACKENDS": ["allauth.account.auth_backends.AuthenticationBackend"],
            "ACCOUNT_EMAIL_VERIFICATION": "mandatory",
            "ACCOUNT_LOGOUT_REDIRECT_URL": "/accounts/login/",
            "ACCOUNT_RATE_LIMITS": False,
        },
    ),
    "simple_history": Package(
        distributions=("django-simple-history",),
        does="rows made, changed and deleted by requests, each with its history and user; the history shown, `as_of`, reverted",
        apps=("simple_history",),
        middleware=("simple_history.middleware.HistoryRequestMiddleware",),
    ),
    "debug_toolbar": Package(
        distributions=("django-debug-toolbar",),
        does="its SQL panel of a GET and of a POST: the statements by alias, and a plan (`EXPLAIN ANALYZE`)",
        apps=("debug_toolbar",),
        middleware=("debug_toolbar.middleware.DebugToolbarMiddleware",),
        urls={"__debug__/": "debug_toolbar.urls"},
        settings={"DEBUG": True, "INTERNAL_IPS": ["127.0.0.1"]},
        differs={"get": {"replica": "2", "plan": "replica"}},
    ),
    "pghistory": Package(
        distributions=("django-pghistory", "django-pgtrigger"),
        does="triggers that record inserts, updates and deletes, with the request's context, in autocommit and in transactions",
        apps=("pgtrigger", "pghistory"),
        middleware=("pghistory.middleware.HistoryMiddleware",),
    ),
    "sentry": Package(
        distributions=("sentry-sdk",),
        does="a trace of each request with its statements as spans, and an event of an error with them as breadcrumbs",
    ),
    "opentelemetry": Package(
        distributions=("opentelemetry-instrumentation-django", "opentelemetry-instrumentation-psycopg"),
        does="spans of requests, below them those of their statements; `ps_core.otel.instrument()`: routes and metrics",
        differs={
            "routes": ["replica", "default"],
            "metrics": ["http.server.active_requests", "http.server.duration", "ps_postgres.events"],
        },
        late={"after": 2},
        note="a statement that a late replica refused is two spans: the second is the primary's",
    ),
    "prometheus": Package(
        distributions=("django-prometheus",),
        does="/metrics: requests by status, statements and errors by alias, rows made and deleted by model",
        apps=("django_prometheus",),
        urls={"": "django_prometheus.urls"},
        engines=("django_prometheus.db.backends.postgresql", "tests.ecosystem.backends.prometheus"),
        differs={
            'django_db_execute_total{alias="default",vendor="postgresql"}': 5.0,
            'django_db_execute_total{alias="replica",vendor="postgresql"}': 1.0,
        },
        write="a backend of yours: [its recipe](../howto/derived-backends.md#django-prometheus)",
    ),
    "tenants": Package(
        distributions=("django-tenants",),
        does="two tenants, each with a schema of its own: users made, shown and deleted by requests to each tenant's host",
        middleware=("django_tenants.middleware.main.TenantMainMiddleware",),
        routers=("django_tenants.routers.TenantSyncRouter",),
        engines=("django_tenants.postgresql_backend",) * 2,
        settings={
            "SHARED_APPS": (shared := ["django_tenants", "django.contrib.contenttypes", "tests.ecosystem.site.Site"]),
            "TENANT_APPS": (tenant := ["django.contrib.contenttypes", "django.contrib.auth", "django.contrib.sessions"]),
            "INSTALLED_APPS": list(dict.fromkeys(shared + tenant)),
            "TENANT_MODEL": "site.Customer",
            "TENANT_DOMAIN_MODEL": "site.Domain",
        },
        settings_of_ours={"ORIGINAL_BACKEND": "ps_django.backend"},
        write='`ORIGINAL_BACKEND = "ps_django.backend"`: [tenants](../howto/tenants.md#schema-per-tenant-django-tenants)',
    ),
    "celery": Package(
        distributions=("django-celery-beat", "django-celery-results"),
        does="tasks sent on commit, a chord and one that fails, with results stored; a periodic task that the scheduler sends",
        apps=("django_celery_beat", "django_celery_results"),
        write="[the recipe](../background-work.md#celery), for tasks that read on replicas",
    ),
    "guardian": Package(
        ci=False,
        distributions=("django-guardian",),
        does="permissions for an object given to a user and to a group, asked for, and taken back",
        apps=("guardian",),
        settings={
            "AUTHENTICATION_BACKENDS": [
                "django.contrib.auth.backends.ModelBackend",
                "guardian.backends.ObjectPermissionBackend",
            ]
        },
    ),
    "reversion_": Package(
        ci=False,
        distributions=("django-reversion",),
        does="each request a revision: rows made, changed, deleted, and restored from their first version",
        apps=("reversion",),
        middleware=("reversion.middleware.RevisionMiddleware",),
    ),
    "trees": Package(
        ci=False,
        distributions=("django-mptt", "django-treebeard"),
        does="trees made, a branch moved and one deleted: MPTT, materialised path, nested sets",
        apps=("mptt", "treebeard"),
    ),
    "import_export": Package(
        ci=False,
        distributions=("django-import-export",),
        does="files imported, dry, by rows, in bulk, and one with an error; exported after each",
        apps=("import_export",),
    ),
    "pgbulk_": Package(
        ci=False,
        distributions=("django-pgbulk",),
        does="many rows by `upsert` (returning), `update` and `copy`",
    ),
    "silk": Package(
        ci=False,
        distributions=("django-silk",),
        does="requests recorded with their statements, and its pages of them",
        apps=("silk",),
        middleware=("silk.middleware.SilkyMiddleware",),
        urls={"silk/": "silk.urls"},
    ),
    "q2": Package(
        ci=False,
        distributions=("django-q2",),
        does="tasks in the database (`orm`), one of which fails, done by its cluster, and their results",
        apps=("django_q",),
        settings={"Q_CLUSTER": {"orm": "default", "workers": 1, "poll": 0.1, "timeout": 20, "retry": 30, "guard_cycle": 0.2}},
    ),
    "pgvector_": Package(
        ci=False,
        distributions=("pgvector",),
        does="vectors with an HNSW index, and the nearest by two distances",
        extensions=("vector",),
    ),
    "ddtrace_": Package(
        ci=False,
        distributions=("ddtrace",),
        does="spans of Django's and of psycopg's statements",
    ),
    "procrastinate_": Package(
        ci=False,
        distributions=("procrastinate",),
        does="tasks sent in transactions, one of which is rolled back and one fails; a worker that LISTENs",
        apps=("procrastinate.contrib.django",),
        # In the worker's process alone: a task is sent in the transaction of what it is about.
        settings_of_ours={"PROCRASTINATE_DATABASE_ALIAS": "direct" if "procrastinate" in sys.argv else "default"},
        write='in its worker `PROCRASTINATE_DATABASE_ALIAS = "direct"`: behind the bouncer it hears nothing, and looks every 5 s',
    ),
    "pglock_": Package(
        ci=False,
        distributions=("django-pglock", "django-pgactivity"),
        does="requests that take a lock (`xact=True`) one after the other, `pglock.model`, and `pgactivity.timeout`",
        apps=("pgactivity", "pglock"),
        write='locks of a session (without `xact=True`): `using="direct"`',
    ),
    "sa_continuum": Package(
        ci=False,
        program="tests.ecosystem.script",
        distributions=("sqlalchemy-continuum",),
        does="rows made, changed, reverted and deleted, each with its version",
        write="`ps_sqlalchemy.sessionmaker`",
    ),
    "sa_advanced": Package(
        ci=False,
        program="tests.ecosystem.script",
        distributions=("advanced-alchemy",),
        does="repositories: rows made one by one and many, listed by filters, counted, changed, deleted",
        write="`session_maker_class=`: [its recipe](../howto/packages.md#advanced-alchemy)",
    ),
    "sa_optuna": Package(
        ci=False,
        program="tests.ecosystem.script",
        distributions=("optuna",),
        does="studies made, optimised and loaded",
        write="a URL of ours: [its recipe](../howto/packages.md#optuna)",
        replicas=False,
    ),
    "sa_apscheduler": Package(
        ci=False,
        program="tests.ecosystem.script",
        distributions=("apscheduler",),
        does="jobs stored, run once and by an interval, listed, removed",
        write="an engine of ours: [its recipe](../howto/packages.md#apscheduler)",
        replicas=False,
    ),
    "sa_kombu": Package(
        ci=False,
        program="tests.ecosystem.script",
        distributions=("kombu",),
        does="messages sent, received and acknowledged in order, through tables",
        write="a URL of ours, after `sqla+`",
        replicas=False,
    ),
    "sa_fastapi": Package(
        ci=False,
        program="tests.ecosystem.script",
        distributions=("fastapi-users", "sqladmin"),
        does="users registered, logged in, known and changed; rows made, shown, changed and deleted in the admin",
        write="a session maker of ours, and the middleware: [recipes](../howto/packages.md#fastapi-users)",
    ),
    "psqlextra_": Package(
        ci=False,
        distributions=("django-postgres-extra",),
        does="rows upserted one by one and in bulk, with `UPDATE` and with `NOTHING`, in autocommit and in a transaction",
        apps=("django.contrib.postgres", "psqlextra"),
        engines=("psqlextra.backend",) * 2,
        settings={"POSTGRES_EXTRA_AUTO_EXTENSION_SET_UP": False},
        settings_of_ours={"POSTGRES_EXTRA_DB_BACKEND_BASE": "ps_django.backend"},
        write="`POSTGRES_EXTRA_DB_BACKEND_BASE`: [its recipe](../howto/derived-backends.md#django-postgres-extra)",
    ),
}
