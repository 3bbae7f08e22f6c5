# Three commands set themselves up on a fresh machine: `make demo`, `make test` and `make test-oldest`. The others need
# `make test` once.
PYTHON ?= python3
OLDEST_PYTHON ?= $(or $(wildcard $(shell pyenv prefix 3.10 2>/dev/null)/bin/python),python3.10)
VENV ?= .venv
PY = $(VENV)/bin/python
CHROMIUM ?= $(shell command -v chromium)
RUNTIME = .page-test/onnxruntime-web-$(shell sed -n 's/^VERSION = "\(.*\)"/\1/p' timm_mobilevit_zoo/page/ortweb.py).tgz

.PHONY: demo test test-all test-oldest check hub table docs format-test host-tests page-test recipes

$(VENV)/.demo: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --editable '.[demo]'
	touch $@

$(VENV)/.test: $(VENV)/.demo
	$(PY) -m pip install --quiet --editable '.[test]'
	touch $@

$(VENV)/.page-test: $(VENV)/.test
	$(PY) -m pip install --quiet --editable '.[page-test]'
	touch $@

$(RUNTIME):
	mkdir -p $(@D)
	cd $(@D) && npm pack --silent $(subst -web-,-web@,$(basename $(@F)))

demo: $(VENV)/.demo
	$(PY) -m timm_mobilevit_zoo demo --output demo

test: $(VENV)/.test
	$(PY) -m pytest --numprocesses auto --dist worksteal $(ARGS)

# The quick set with the oldest supported releases, in an environment of its own.
.venv-oldest/.test: tests/oldest.txt pyproject.toml
	$(OLDEST_PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --requirement tests/oldest.txt
	touch $@

test-oldest: .venv-oldest/.test
	PATH="$(CURDIR)/.venv-oldest/bin:$$PATH" .venv-oldest/bin/python -m pytest --numprocesses auto --dist worksteal $(ARGS)

# Every name through everything: hours, before a release.
test-all: $(VENV)/.test
	EVERY_SIZE=1 $(PY) -m pytest --numprocesses auto --dist worksteal $(ARGS)

check: $(VENV)/.test
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy timm_mobilevit_zoo timm_mobilevit_zoo_cli
	$(PY) -m pylint --disable=all --enable=similarities --min-similarity-lines=8 timm_mobilevit_zoo timm_mobilevit_zoo_cli
	$(PY) docs/tools/generate.py --check
	$(PY) docs/tools/benchmarks.py --check
	$(PY) docs/tools/formats.py --check

hub table: $(VENV)/.test
	$(PY) docs/tools/generate.py
	$(PY) docs/tools/benchmarks.py
	$(PY) docs/tools/formats.py

docs: $(VENV)/.test
	$(PY) -m pip install --quiet --editable '.[docs]'
	$(PY) -m mkdocs build --strict

host-tests: $(VENV)/.test
	$(PY) tests/host_tests.py

# The page in a browser: needs chromium, and npm for the runtime.
page-test: $(VENV)/.page-test $(RUNTIME)
	ZOO_CHROMIUM=$(CHROMIUM) ZOO_ORT_WEB=$(RUNTIME) $(PY) -m pytest tests/browser_tests.py $(ARGS)

# A format of `export` in an environment of its own, such as FORMAT=litert: its extra says which versions work together.
format-test:
	$(PYTHON) -m venv .format-test/$(FORMAT)
	.format-test/$(FORMAT)/bin/python -m pip install --quiet --editable '.[$(FORMAT)]' pytest pytest-timeout
	ZOO_FORMAT=$(FORMAT) .format-test/$(FORMAT)/bin/python -m pytest tests/format_tests.py $(ARGS)

recipes: $(VENV)/.test
	$(PY) tests/run_recipes.py $(TRAIN_PY)
