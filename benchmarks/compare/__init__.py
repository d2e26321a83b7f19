"""`make bench`: DSE beside floors written by hand and beside its peers. See ``docs/performance/README.md``."""
