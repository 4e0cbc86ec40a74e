"""Alembic migrates over the direct path: the recipes of docs/alembic.md, run."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import pytest
from alembic import command
from alembic.config import Config

from ps_lab import Lab

ROOT = Path(__file__).parents[2]
SYNC, ASYNC, CONCURRENTLY = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "alembic.md").read_text(), re.DOTALL)

# What `alembic init` writes, less its comments and logging.
STOCK = """
    from alembic import context
    from sqlalchemy import engine_from_config, pool

    connectable = engine_from_config(
        context.config.get_section(context.config.config_ini_section, {}), prefix="sqlalchemy.", poolclass=pool.NullPool
    )
    with connectable.connect() as connection:
        context.configure(connection=connection)
        with context.begin_transaction():
            context.run_migrations()
"""

MODELS = """
    from sqlalchemy import Column, Integer, MetaData, String, Table

    class Base:
        metadata = MetaData()

    Table("alembic_product", Base.metadata, Column("id", Integer, primary_key=True), Column("name", String))
"""

FIRST = """
    import sqlalchemy as sa
    from alembic import op

    revision, down_revision = "a1", None

    def upgrade():
        op.create_table("alembic_product", sa.Column("id", sa.Integer, primary_key=True), sa.Column("name", sa.String))
        op.bulk_insert(sa.table("alembic_product", sa.column("name", sa.String)), [{"name": "teapot"}, {"name": "cup"}])
        shown = op.get_bind().execute(sa.text("SHOW statement_timeout")).scalar()
        assert shown == "0", shown

    def downgrade():
        op.drop_table("alembic_product")
"""

SECOND = f"""
    from alembic import op

    revision, down_revision = "a2", "a1"

    {CONCURRENTLY.replace('"product"', '"alembic_product"').replace(chr(10), chr(10) + "    ")}
    def downgrade():
        with op.get_context().autocommit_block():
            op.drop_index("ix_product_name", postgresql_concurrently=True)
"""


class Project:
    """A folder with migrations."""

    def __init__(self, folder: Path, lab: Lab) -> None:
        self.config = Config()
        self.config.set_main_option("script_location", str(folder))
        self.config.set_main_option("path_separator", "os")
        self.folder = folder
        self._lab = lab
        versions, models = folder / "versions", folder / "shop"
        for path in (versions, models):
            path.mkdir()
        for path, text in ((versions / "a1.py", FIRST), (versions / "a2.py", SECOND), (models / "models.py", MODELS)):
            path.write_text(dedent(text))

    def env(self, text: str) -> None:
        """Let `env.py` be this."""
        (self.folder / "env.py").write_text(dedent(text))

    def made(self) -> tuple[str | None, bool, bool]:
        """Return who owns the table, whether its index is there and valid, and whether the version is recorded."""
        owner = self._lab.sql("SELECT tableowner FROM pg_tables WHERE tablename = 'alembic_product'")
        index = self._lab.sql("SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass('ix_product_name')")
        recorded = owner and self._lab.sql("SELECT version_num FROM alembic_version") == [("a2",)]
        return (owner[0][0] if owner else None), index == [(True,)], bool(recorded)


@pytest.fixture
def project(ps_lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    """A project whose environment names the lab."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PS_URL", ps_lab.url)
    monkeypatch.setenv("PS_BOUNCER", "write-pool")
    monkeypatch.setenv("PS_REPLICA_BOUNCER", "read-pool")
    project = Project(tmp_path, ps_lab)
    yield project
    ps_lab.sql("DROP TABLE IF EXISTS alembic_product, alembic_version")
    for name in ("shop", "shop.models"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("env", [SYNC, ASYNC], ids=["sync", "async"])
def test_recipes(ps_lab: Lab, project: Project, env: str) -> None:
    """Up and down again over the direct path alone, an index built concurrently included."""
    project.env(env)
    with ps_lab.round_trips() as counter:
        command.upgrade(project.config, "head")
        assert project.made() == ("app", True, True)
        command.downgrade(project.config, "base")
    assert project.made() == (None, False, False)
    assert counter.by_path["direct"] == counter.count


def test_another_role(ps_lab: Lab, project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """PS_DIRECT_URL names the role that migrates, and that owns what it makes."""
    monkeypatch.setenv("PS_DIRECT_URL", ps_lab.create_role("migrator").partition("&ps_")[0])
    project.env(SYNC)
    try:
        command.upgrade(project.config, "head")
        assert project.made() == ("migrator", True, True)
        command.downgrade(project.config, "base")
    finally:
        ps_lab.drop_role("migrator")


def test_offline(ps_lab: Lab, project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    """`alembic upgrade --sql` prints the statements and connects to nothing."""
    project.env(SYNC)
    (project.folder / "versions" / "a1.py").write_text(dedent(FIRST).split("    shown =")[0] + "def downgrade(): ...\n")
    with ps_lab.round_trips() as trips:
        command.upgrade(project.config, "head", sql=True)
    assert trips.startups == 0
    assert "CREATE INDEX CONCURRENTLY ix_product_name" in capsys.readouterr().out
    assert project.made() == (None, False, False)


@pytest.mark.parametrize("path", ["direct", "primary"])
def test_url_alone(ps_lab: Lab, project: Project, path: str) -> None:
    """Alembic's own env.py with `postgresql+ps://` in the ini file, over either path to the primary."""
    url = ps_lab.url.replace("postgresql://", "postgresql+ps://") + "&ps_statement_timeout=off&ps_transaction_timeout=off"
    url += "&ps_bouncer=write-pool" if path == "primary" else "&ps_pooled=false"
    project.config.set_main_option("sqlalchemy.url", url.replace("%", "%%"))
    project.env(STOCK)
    with ps_lab.round_trips() as counter:
        command.upgrade(project.config, "head")
        assert project.made() == ("app", True, True)
        command.downgrade(project.config, "base")
    assert project.made() == (None, False, False)
    assert counter.by_path[path] == counter.count
