"""Who holds a run: a lease in its row, with an epoch that every write checks.

The epoch is a fencing token: a process that was thought dead and wakes up writes nothing any more. A holder whose
process has ended on this host loses the lease at once, one elsewhere after half a minute without a renewal.
"""

from __future__ import annotations

import os
import secrets
import socket
import sys

LEASE_S = 30.0
RENEW_S = 10.0


def owner_name() -> str:
    """A name for this process that no other one has: `host:pid:random`."""
    return f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"


def shown(owner: str) -> str:
    """The part of an owner's name that people need: `host:pid`."""
    return owner.rpartition(":")[0]


def gone(owner: str) -> bool:
    """Whether an owner's process is known to have ended: it ran on this host and its number is free."""
    host, _, pid = shown(owner).rpartition(":")
    if host != socket.gethostname() or not pid.isdigit() or sys.platform == "win32":
        return False  # signal 0 is Ctrl-C on Windows
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OSError):
        return False
    return False


def held(owner: str, lease_until: float, now: float) -> bool:
    """Whether somebody holds the run."""
    return bool(owner) and lease_until >= now and not gone(owner)
