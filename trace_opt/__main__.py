"""`python -m trace_opt` is the command `trace-opt`."""

from __future__ import annotations

import sys

from trace_opt.cli import main

if __name__ == "__main__":
    sys.exit(main())
