"""What the policy service refuses, and why."""

from __future__ import annotations

from dse.core.rpc import register_error
from dse.errors import DseError

__all__ = ["Incomplete", "PolicyError", "Stopped"]


class PolicyError(DseError):
    """A policy, rule or query that cannot be; the message says what is wrong with it."""


register_error(PolicyError, name="dse.PolicyError")


class Incomplete(PolicyError):
    """Tables that the rule reads are not known yet. `tables` are (service_id, table) pairs."""

    def __init__(self, tables: set[tuple[str, str]]) -> None:
        names = ", ".join(sorted(f"{service}.{table}" for service, table in tables))
        super().__init__(f"waits for {names}")
        self.tables = tables


class Stopped(PolicyError):
    """A statement took too long or returned too much, and was stopped."""


register_error(Stopped, name="dse.PolicyStopped")
