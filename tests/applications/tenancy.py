"""A project with django-tenants, as its documentation has it, and what its tests run in it."""

import json
from typing import Any

SETTINGS = """
import json, os
import ps_django

if "STOCK" in os.environ:
    DATABASES = {"default": {"ENGINE": "django_tenants.postgresql_backend", **json.loads(os.environ["STOCK"])}}
else:
    ORIGINAL_BACKEND = os.environ.get("ORIGINAL_BACKEND", "ps_django.backend")
    DATABASES = ps_django.databases(engine="django_tenants.postgresql_backend")
    DATABASES["replica"]["ENGINE"] = os.environ.get("ENGINE_OF_REPLICA", DATABASES["replica"]["ENGINE"])
DATABASE_ROUTERS = ["django_tenants.routers.TenantSyncRouter"]
if "STOCK" not in os.environ:
    DATABASE_ROUTERS.insert(0, "ps_django.routers.ReplicaRouter")
SHARED_APPS = ["django_tenants", "customers", "django.contrib.contenttypes"]
TENANT_APPS = ["notes", "django.contrib.contenttypes"]
INSTALLED_APPS = list(dict.fromkeys([*SHARED_APPS, *TENANT_APPS]))
TENANT_MODEL, TENANT_DOMAIN_MODEL = "customers.Customer", "customers.Domain"
TENANT_LIMIT_SET_CALLS = "LIMIT" in os.environ
MIDDLEWARE = ["ps_django.middleware.ConsistencyMiddleware", "django_tenants.middleware.main.TenantMainMiddleware"]
ROOT_URLCONF = "urls"
PS_DJANGO = {"READS": "replica"}
ALLOWED_HOSTS = ["*"]
SECRET_KEY = "tests"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
MIGRATION_MODULES = {} if "SECOND" in os.environ else {"notes": "notes.first"}
"""

URLS = """
from django.http import JsonResponse
from django.urls import path
from notes.models import Note

def text(request):
    return JsonResponse({"texts": [note.text for note in Note.objects.all()], "from": Note.objects.all()[:1].get()._state.db})

urlpatterns = [path("", text)]
"""

CUSTOMERS = """
from django.db import models
from django_tenants.models import DomainMixin, TenantMixin

class Customer(TenantMixin):
    name = models.CharField(max_length=50)
    auto_drop_schema = True

class Domain(DomainMixin):
    pass
"""

NOTES = """
from django.db import models

class Note(models.Model):
    text = models.CharField(max_length=50)
"""

OF_CUSTOMERS = """
import django.db.models.deletion
import django_tenants.postgresql_backend.base
from django.db import migrations, models

class Migration(migrations.Migration):
    initial = True
    operations = [
        migrations.CreateModel("Customer", [
            ("id", models.BigAutoField(primary_key=True, serialize=False)),
            ("schema_name", models.CharField(db_index=True, max_length=63, unique=True,
                validators=[django_tenants.postgresql_backend.base._check_schema_name])),
            ("name", models.CharField(max_length=50)),
        ]),
        migrations.CreateModel("Domain", [
            ("id", models.BigAutoField(primary_key=True, serialize=False)),
            ("domain", models.CharField(db_index=True, max_length=253, unique=True)),
            ("is_primary", models.BooleanField(db_index=True, default=True)),
            ("tenant", models.ForeignKey(
                on_delete=django.db.models.deletion.CASCADE, related_name="domains", to="customers.customer")),
        ]),
    ]
"""

FIRST = """
from django.db import migrations, models

class Migration(migrations.Migration):
    initial = True
    operations = [migrations.CreateModel("Note", [
        ("id", models.BigAutoField(primary_key=True, serialize=False)),
        ("text", models.CharField(max_length=50)),
    ])]
"""

SECOND = """
from django.contrib.postgres.operations import AddIndexConcurrently
from django.db import connection, migrations, models

def fill(apps, schema_editor):
    apps.get_model("notes", "Note").objects.create(text=schema_editor.connection.schema_name)

class Migration(migrations.Migration):
    atomic = False
    dependencies = [("notes", "0001_initial")]
    operations = [
        migrations.RunPython(fill),
        AddIndexConcurrently("note", models.Index(fields=["text"], name="note_text")),
    ]
"""

TOOLS = """
import json, sys, threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
import django
django.setup()
from django.db import connection, connections, transaction
from django_tenants.utils import schema_context, tenant_context
from customers.models import Customer
from notes.models import Note

def texts(manager=Note.objects):
    return list(manager.values_list("text", flat=True))

def where(alias="replica"):
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT current_setting('search_path'), pg_is_in_recovery()")
        return list(cursor.fetchone())

def tell(**found):
    print(json.dumps(found))
"""


def files() -> dict[str, str]:
    """Return the project's files."""
    return {
        "project.py": SETTINGS,
        "urls.py": URLS,
        "tools.py": TOOLS,
        "customers/models.py": CUSTOMERS,
        "customers/migrations/0001_initial.py": OF_CUSTOMERS,
        "notes/models.py": NOTES,
        # The same application before and after a migration was added.
        "notes/first/0001_initial.py": FIRST,
        "notes/migrations/0001_initial.py": FIRST,
        "notes/migrations/0002_index.py": SECOND,
    }


def told(output: str) -> Any:
    """Return what a script told last."""
    return json.loads(output.splitlines()[-1])
