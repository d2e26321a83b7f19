"""Simulation: the real nodes on a seeded virtual network and clock. See ``docs/simulation.md``.

python -m dse.testing.simulation --histories 10000
python -m dse.testing.simulation --seed 4711 --trace
"""
