# The one command of a contributor: `make check` runs what CI runs, in the environment that is active.
.PHONY: check docs format test slow

check:
	ruff format --check .
	ruff check .
	pyright
	$(MAKE) docs
	pytest

format:
	ruff format .
	ruff check --fix .

# The pages of docs/ as a site in build/site; a broken link or an unreadable docstring is an error.
docs:
	NO_MKDOCS_2_WARNING=1 mkdocs build --quiet

test:
	pytest

slow:
	pytest -m slow
