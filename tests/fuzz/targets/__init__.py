"""What is fuzzed: a module each, with ``run(data)`` and ``SEEDS``."""
