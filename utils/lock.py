"""One process at a time."""

import os
from pathlib import Path

from filelock import FileLock, Timeout

from utils.files import write_whole
from utils.shell import UserError


class Lock:
    """On a folder, as the files .lock and, with the number of the process that has it, .process; a process that ends loses it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.process = folder, folder / ".process"

    def take(self, purpose: str) -> None:
        """UserError where another process has it, who is then named with what it does, or where the folder can't be written to."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.lock = FileLock(self.folder / ".lock", timeout=0, is_singleton=True)  # a process may take it more than once
            self.lock.acquire()
        except Timeout:
            holder = f"process {self.process.read_text()}" if self.process.exists() else "another process"
            raise UserError(f"{holder} {purpose} right now: let it end, or give another --name") from None
        except OSError as error:
            raise UserError(f"can't write to {self.folder} ({error.strerror}): give --root another folder") from error
        write_whole(self.process, str(os.getpid()).encode())  # not into .lock itself, which some systems let nobody read or write

    def release(self) -> None:
        """Gives it back."""
        self.process.unlink(missing_ok=True)
        self.lock.release(force=True)
