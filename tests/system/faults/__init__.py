"""Faults on real brokers: a fleet of node processes under constant load, and the books that it is judged by.

`process` is one process of the fleet with its load (`changes`, `calls`); `fleet` starts, breaks and questions the
processes; `verdict` judges what they wrote down; `report` writes the table of counts.
"""
