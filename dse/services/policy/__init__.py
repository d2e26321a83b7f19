"""Policies: rules in SQL over the tables of all services, whose results are tables themselves."""

from dse.errors import MissingExtra

try:
    import sqlglot as _  # noqa: F401 - seen first, so that one place says what is missing
except ImportError as error:
    raise MissingExtra(
        "the policy service lacks its package (sqlglot cannot be imported); install it with: pip install 'dse[policy]'",
        extra="policy",
    ) from error

from dse.services.policy.errors import PolicyError
from dse.services.policy.service import Policy, RuleOptions
from dse.services.policy.store import ActionOptions

__all__ = ["ActionOptions", "Policy", "PolicyError", "RuleOptions"]
