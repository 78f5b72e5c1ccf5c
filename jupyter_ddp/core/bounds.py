"""How long the pool waits: every wait in it ends after one of these, in seconds."""

from __future__ import annotations

START_TIMEOUT_S = 120.0
"""From the request for a pool until its group is formed: a cold import of torch on a slow disk."""
FORM_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 2.0
"""How long ranks may take over their exit functions before they are killed."""
KILL_TIMEOUT_S = 5.0
"""How long the system may take to end a killed process before it is reported as unkillable."""
PEER_FAILED_TIMEOUT_S = 5.0
"""After a rank's exception, how long the others may take before waits on it are broken."""
PEER_DIED_TIMEOUT_S = 1.0
