"""Between a script and the person who started it: what they got wrong is one sentence, never a traceback."""

import os
import sys
from collections.abc import Callable
from concurrent.futures import Future, wait
from pathlib import Path

from tqdm import tqdm

BARS: list[tqdm] = []  # progress bars that may have begun a line, which a sentence mustn't be put behind
FLUSHING: set[Future] = set()  # files on their way to the disk, beside the script


class UserError(Exception):
    """What the user asked for can't be done: one sentence that says what was wrong, what was expected, what to do."""

    def __str__(self) -> str:
        return printable(super().__str__())


def printable(text: str) -> str:
    """A text with whatever a file or its name may have put into it to trick a terminal written out."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def command_line(command: Callable[[], object]) -> None:
    """Runs a script's command; a UserError, or a file that can't be written or read, ends it with a sentence on stderr and status 2."""
    status = 0
    try:
        command()
    except (UserError, OSError) as error:
        for bar in BARS:
            bar.close()
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        status = 130
    except SystemExit as end:
        status = end.code or 0
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # At Python's own end gloo's threads may abort the process: here three of nine runs (pytorch/pytorch issue 190489).
        wait(FLUSHING)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def require_positive(**numbers: float) -> None:
    """UserError unless each of these is a finite number above zero."""
    for name, value in numbers.items():
        if not 0 < value < float("inf"):
            raise UserError(f"{name} is {value}, expected a finite number above zero: give --{name.replace('_', '-')} another value")


def require_not_negative(**numbers: float) -> None:
    """UserError unless each of these is a finite number, zero or above."""
    for name, value in numbers.items():
        if not 0 <= value < float("inf"):
            raise UserError(f"{name} is {value}, expected a finite number, 0 or above: give --{name.replace('_', '-')} another value")


def require_share(**numbers: float) -> None:
    """UserError unless each of these is a number from 0 to 1."""
    for name, value in numbers.items():
        if not 0 <= value <= 1:
            raise UserError(f"{name} is {value}, expected a number from 0 to 1: give --{name.replace('_', '-')} another value")


def require_seed(seed: int) -> None:
    """UserError unless torch takes this seed."""
    if not 0 <= seed < 2**63:
        raise UserError(f"seed is {seed}, expected a number from 0 to 2^63 - 1: give --seed another value")


def require_writable(*folders: Path) -> None:
    """UserError unless these folders can be made and written to; makes nothing."""
    for folder in folders:
        # (os.path.exists, because Path.exists raises where a folder is closed to us)
        there = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.exists(path))
        if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
            raise UserError(f"can't write to {folder}, {there} is no folder that can be written to: give --root another one")
