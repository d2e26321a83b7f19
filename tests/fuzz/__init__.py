"""Fuzzers of whatever reads what others wrote. See docs/testing.md.

`targets/` has a module each: ``run(data)`` interprets bytes as input and raises when a promise is broken, ``SEEDS`` are
inputs to begin with. `engine.py` is what an input may cost; `__main__.py` runs them all, coverage-guided, with a table;
`frames.py` is the long run. Inputs that broke something once are in `corpus/<target>/`, and run in `make test`.
"""
