# Every target does its own set-up: a virtual environment in .venv, and PgBouncer from the system's packages.
# PYTHON=/path/to/python3 chooses the interpreter; without it, the newest that is found.

.PHONY: bench compare demo differential docs lint mutants scale soak stress test test-fast test-tools adversity test-suite-django
.PHONY: test-suite-sqlalchemy
.PHONY: test-applications test-browser test-ecosystem test-postgis test-websocket example-django example-django-pairs

FAULTS = answer_cut behind cancellation commit_in_flight demoted_primary edge_hangs every_phase fork replica_gone timeouts \
	use_after_loss

demo: .venv/ready
	.venv/bin/ps-postgres demo

# WORKERS=3: processes, each with a lab of its own, which take whole files from one queue (tests/conftest.py). WORKERS=0: one process.
WORKERS ?= 2
PARALLEL = -n $(WORKERS) --dist loadfile

test: .venv/ready
	.venv/bin/pytest $(PARALLEL)

# Every row of the failure tables, and applications of both frameworks, against real servers: a part of `test`.
adversity: .venv/ready
	.venv/bin/pytest tests/adversity

# Every value in every statement form in every way, on stock and on ours: docs/generated/differential.md. `test` runs a part of it.
differential: .venv/ready
	PS_DIFFERENTIAL=everything .venv/bin/pytest tests/differential $(ARGS)

test-fast: .venv/ready
	.venv/bin/pytest -m fast $(PARALLEL)

# Everything that is the same over the WebSocket: the fast subset, the worst faults, and both frameworks' first paths.
test-websocket: .venv/ready
	PS_LAB_TRANSPORT=websocket .venv/bin/pytest -m fast
	PS_LAB_TRANSPORT=websocket .venv/bin/pytest $(FAULTS:%=tests/adversity/test_%.py) tests/ps_sqlalchemy/test_first_path.py \
		tests/ps_django/test_first_path.py

# The tutorials followed, how labs end, the lab of the command line, demo, benchmarks, stress, comparison and soak, each for some seconds;
# and, since here no other worker is at work, what measures the time of the lab.
test-tools: .venv/ready
	.venv/bin/pytest -m tools

# Django's own tests, stock and ours, direct and through a bouncer. ARGS="basic lookup"
test-suite-django: .venv/ready
	.venv/bin/python -m tests.suites.django $(ARGS)

# SQLAlchemy's dialect suite, stock and ours, through a bouncer. ARGS="-k Returning"
# ARGS=own: its own tests of engines, sessions, transactions and PostgreSQL. ARGS="own test/engine/test_pool.py"
test-suite-sqlalchemy: .venv/ready
	.venv/bin/python -m tests.suites.sqlalchemy $(ARGS)

# Applications and packages of others on the lab: Wagtail, django-oscar, ...; those of docs/howto/packages.md and docs/howto/derived-backends.md.
# --no-deps: fastapi-users' adapter asks for SQLAlchemy below 2.1, django-prometheus for Django below 6.1, django-postgres-extra for
# Django below 6; they work, and the others are to be tested with the newest.
test-applications: .venv/ready
	@.ci/setup venv .venv --group applications
	@.ci/setup venv .venv --no-deps 'fastapi-users-db-sqlalchemy>=7' 'django-prometheus>=2.5' 'django-postgres-extra>=3'
	@.ci/setup postgis || true
	.venv/bin/pytest tests/applications

# GeoDjango on servers with PostGIS, from the system's packages; skipped, with the reason, where these cannot be installed.
test-postgis: .venv/ready
	@.ci/setup postgis || true
	.venv/bin/pytest tests/postgis

# Packages that people bring, each at its real work on the lab; docs/generated/ecosystem.md with PS_WRITE_DOCS=1. CI runs
# those of ARGS="-m ci" with GROUP=ecosystem. An environment of its own: some of them ask for an older Django.
test-ecosystem:
	@.ci/setup system
	@.ci/setup venv .cache/ecosystem --editable '.[sqlalchemy,django,lab,otel]' --group $(or $(GROUP),ecosystem-more)
	@.ci/setup venv .cache/ecosystem --no-deps 'fastapi-users-db-sqlalchemy>=7' 'django-postgres-extra>=3'
	.cache/ecosystem/bin/pytest tests/ecosystem $(ARGS)

# The shop of docs/examples in a real browser; Chromium from the system's packages.
test-browser: .venv/ready
	@.ci/setup venv .venv --group browser
	@command -v chromium >/dev/null || apt-get install --yes --no-install-recommends chromium
	.venv/bin/pytest docs/examples/django_shop/test_browser.py

# The shop of docs/examples under gunicorn and uvicorn, on a local PlanetScale, until Ctrl-C.
example-django: .venv/ready
	PYTHONPATH=docs/examples .venv/bin/python -m django_shop.run

# Write, follow the redirect, look for what was written: on replicas that are half a second late. PAIRS=2000
example-django-pairs: .venv/ready
	PYTHONPATH=docs/examples .venv/bin/python -m django_shop.run --pairs $(or $(PAIRS),2000)

bench: .venv/ready
	.venv/bin/python -m tests.benchmarks.bench $(ARGS)

# A thousand connections, a switchover and an outage; the cost of a read by concurrency: docs/generated/scale.md.
scale: .venv/ready
	.venv/bin/python -m tests.benchmarks.scale

# The same application and faults on other packages: docs/comparison.md. ARGS="--quick", ARGS="--only sqlalchemy_ours django_ours"
compare: .venv/ready
	@.ci/setup venv .venv --group compare
	.venv/bin/python -m tests.compare $(ARGS)

# Random faults under load from both applications, with checkers; a report in build/soak. MINUTES=30 SEED=1
soak: .venv/ready
	.venv/bin/python -m tests.soak --minutes $(or $(MINUTES),30) $(if $(SEED),--seed $(SEED))

# One change at a time in what decides: does a test that needs no server notice? docs/generated/mutants.md. ARGS="--only plan"
mutants: .venv/ready
	@.ci/setup venv .venv --group mutants
	.venv/bin/python -m tests.mutants $(ARGS)

# The pages, in build/docs.
docs: .venv/ready
	@.ci/setup venv .venv --group docs
	.venv/bin/sphinx-build -n -W --keep-going docs build/docs

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
	@.ci/setup venv .venv --editable '.[sqlalchemy,django,lab,demo]' --group test
	@touch $@

.venv/ready-to-lint: .venv/ready
	@.ci/setup venv .venv --group dev
	@touch $@
