# Every target does its own set-up: a virtual environment in .venv, and PgBouncer from the system's packages.
# PYTHON=/path/to/python3 chooses the interpreter; without it, the newest that is found.

.PHONY: bench demo stress test test-fast lint adversity test-suite-sqlalchemy

demo: .venv/ready
	.venv/bin/ps-postgres demo

test: .venv/ready
	.venv/bin/pytest

# Every row of the failure tables against real servers; not yet part of `test`.
adversity: .venv/ready
	.venv/bin/pytest tests/adversity

test-fast: .venv/ready
	.venv/bin/pytest -m fast

# SQLAlchemy's own dialect suite, stock and ours, through a bouncer. ARGS="-k Returning"
test-suite-sqlalchemy: .venv/ready
	.venv/bin/python -m tests.suites.sqlalchemy $(ARGS)

bench: .venv/ready
	.venv/bin/python -m tests.benchmarks.bench

# MINUTES=10 SEED=1
stress: .venv/ready
	.venv/bin/python -m tests.adversity.stress --minutes $(or $(MINUTES),10) $(if $(SEED),--seed $(SEED))

lint: .venv/ready-to-lint
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	.venv/bin/pytest -q tests/test_house.py tests/ps_sqlalchemy/test_typing.py

.venv/ready: pyproject.toml .ci/setup
	@.ci/setup system
	@.ci/setup venv .venv --editable '.[sqlalchemy,django,lab]' --group test
	@touch $@

.venv/ready-to-lint: .venv/ready
	@.ci/setup venv .venv --group dev
	@touch $@
