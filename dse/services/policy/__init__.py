"""Policies: rules in SQL over the tables of all services, whose results are tables themselves."""

from dse.services.policy.errors import PolicyError
from dse.services.policy.service import Policy, RuleOptions
from dse.services.policy.store import ActionOptions

__all__ = ["ActionOptions", "Policy", "PolicyError", "RuleOptions"]
