"""The guard's own command line on a disk that is slow or full, for `tests.bench.audit`: DISK_FAULT=slow or full."""

from __future__ import annotations

import errno
import os
import sys
import time
from typing import Any

import numpy as np

from guard import audit_log, cli

SLOW_S = 0.05  # for each write of the audit


def slow(*_: Any, **__: Any) -> None:
    time.sleep(SLOW_S)


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "no space left on device")


def main() -> None:
    before = {"slow": slow, "full": full}[os.environ["DISK_FAULT"]]
    write_all, savez = audit_log.write_all, np.savez

    def write(descriptor: int, content: bytes) -> None:
        before()
        write_all(descriptor, content)

    def save(*arguments: Any, **arrays: Any) -> None:
        before()
        savez(*arguments, **arrays)

    audit_log.write_all, np.savez = write, save  # type: ignore[assignment]
    sys.exit(cli.run(sys.argv[1:]))


if __name__ == "__main__":
    main()
