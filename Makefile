# Two environments, because AutoGPTQ needs a transformers that GPTQModel has left behind.
PYTHON ?= $(shell command -v python3.11 || command -v python3)

EXTRAS_modern := gptqmodel,optimum,llmcompressor,cli,zero-shot,eval,test,dev
EXTRAS_autogptq := autogptq,cli,dev

# most of a test's time is one thread importing a toolkit; a file's tests stay together for its fixtures
WORKERS := -n 2 --dist loadfile --no-loadscope-reorder --durations 20

.PHONY: setup demo test lint docs test-matrix test-peers test-runtimes audit findings

setup:
	@$(MAKE) --no-print-directory -j2 .venv/modern/.installed .venv/autogptq/.installed

# newer files mean another installation; torch comes first, as builds of other packages import it; what is
# imported is compiled then, a small part of what is installed
.venv/%/.installed: requirements/%.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { \
	  echo "Python 3.11 is needed and '$(PYTHON)' is none; run make PYTHON=/path/to/python3.11"; exit 1; }
	@echo "== .venv/$*: installing .[$(EXTRAS_$*)]"
	$(PYTHON) -m venv .venv/$*
	.venv/$*/bin/python -m pip install --no-compile "$$(grep '^torch==' requirements/$*.txt)"
	.venv/$*/bin/python -m pip install --no-compile -c requirements/$*.txt -e '.[$(EXTRAS_$*)]'
	@touch $@

demo: .venv/modern/.installed
	.venv/modern/bin/magr-gptq demo

test: setup
	@echo "== tests with GPTQModel"
	MAGR_ENV=modern .venv/modern/bin/python -m pytest $(WORKERS)
	@echo "== tests with AutoGPTQ"
	MAGR_ENV=autogptq .venv/autogptq/bin/python -m pytest $(WORKERS)

lint: .venv/modern/.installed
	.venv/modern/bin/ruff check .
	.venv/modern/bin/ruff format --check .
	.venv/modern/bin/mypy

.venv/docs/.installed: requirements/docs.txt
	$(PYTHON) -m venv .venv/docs
	.venv/docs/bin/python -m pip install -r requirements/docs.txt
	@touch $@

# into site/; a link that leads nowhere is an error
docs: .venv/docs/.installed
	NO_MKDOCS_2_WARNING=1 .venv/docs/bin/mkdocs build --strict

# other releases than the pinned ones, each in a fresh environment: `make test-matrix ROWS="torch-oldest"`
test-matrix:
	$(PYTHON) -m tools.matrix $(ROWS)

# the toolkits' own tests: `make test-peers PEERS="gptqmodel=DIR"` has their sources at hand
test-peers: .venv/modern/.installed
	.venv/modern/bin/python -m tools.peers $(PEERS)

# what loads our checkpoints, each consumer in an environment of its own: `make test-runtimes CONSUMERS="vllm"`
test-runtimes: .venv/modern/.installed
	.venv/modern/bin/python -m tools.runtimes $(CONSUMERS)

# what other toolkits do, checked again in fresh environments: `make findings NAMES="static-groups"`
findings:
	PYTHON=$(PYTHON) findings/run.sh $(NAMES)

.venv/audit/.installed:
	$(PYTHON) -m venv .venv/audit
	.venv/audit/bin/python -m pip install pip-audit pip-licenses
	@touch $@

audit: audit-modern audit-autogptq

# known vulnerabilities of what is pinned; strict, as a package that is not looked up would else pass
audit-%: .venv/audit/.installed
	.venv/audit/bin/pip-audit --strict --disable-pip --no-deps --requirement requirements/$*.txt
