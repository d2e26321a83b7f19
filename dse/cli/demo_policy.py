"""The demo's policy: a rule over what the host and the door publish, and what is called for each violation."""

from __future__ import annotations

from dse.services.policy import ActionOptions, Policy, RuleOptions

__all__ = ["POLICY", "RULE", "UNDECLARED_PORTS", "make_policy"]

POLICY, RULE = "security", "undeclared_ports"

# The machine's other programs have declared nothing, and are none of this rule's business.
UNDECLARED_PORTS = """
SELECT s.port, p.name AS process, p.pid, p.started
FROM host.sockets s JOIN host.processes p ON p.pid = s.pid
WHERE s.protocol = 'tcp'
  AND p.pid IN (SELECT d.pid FROM door.declared d)
  AND NOT EXISTS (SELECT 1 FROM door.declared d WHERE d.pid = p.pid AND s.port BETWEEN d.first_port AND d.last_port)
"""


def make_policy(service_id: str) -> Policy:
    """Return the service: whoever has declared its ports listens on no other; the pager is called if it does."""
    action = ActionOptions(service="pager", method="page", constants={"rule": f"{POLICY}.{RULE}"})
    return Policy(service_id, policies={POLICY: {RULE: RuleOptions(sql=UNDECLARED_PORTS, action=action)}})
