"""The guard's own command line with its times of forgetting shortened, for `tests.bench.hour`: SPEED=60 makes 60 of 1.

What expires after 15 minutes does so after 15 seconds then, and a sample that is written every minute is every second.
No clock is touched: deadlines, timeouts and what the event loop waits for stay as they are.
"""

from __future__ import annotations

import os
import sys

from guard import cli
from guard.queries import memory
from guard.serve.audit import traffic_sampling


def main() -> None:
    speed = float(os.environ["SPEED"])
    memory.EXPIRY_S /= speed
    memory.MAX_PRINCIPALS = int(os.environ["PRINCIPALS"])
    traffic_sampling.FLUSH_S /= speed
    sys.exit(cli.run(sys.argv[1:]))


if __name__ == "__main__":
    main()
