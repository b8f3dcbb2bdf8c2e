# The one command of a contributor: `make check` runs what CI runs, in the environment that is active.
.PHONY: check format test slow

check:
	ruff format --check .
	ruff check .
	pyright
	pytest

format:
	ruff format .
	ruff check --fix .

test:
	pytest

slow:
	pytest -m slow
