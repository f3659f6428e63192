"""What the command lines of the engine and of training share: one line for everything bad."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Final, NoReturn

USAGE_STATUS = 2
_COMPUTING: Final = frozenset(("accelerate", "numpy", "peft", "torch", "transformers"))


class UsageError(ValueError):
    """Bad input on the command line; the message is one line for the user."""


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose complaints are one line."""

    def error(self, message: str) -> NoReturn:
        """Raises what is wrong instead of printing how the command is used.

        Raises:
            UsageError: always.
        """
        raise UsageError(message)


def refused(message: str) -> int:
    """Writes one line to stderr, whatever breaks `message` holds; the exit status."""
    sys.stderr.write(printable(" ".join(message.split())) + "\n")
    return USAGE_STATUS


def printable(text: str) -> str:
    """A line without control sequences: a saved run is anybody's text."""
    return "".join(
        letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text
    )


def is_fault(error: BaseException) -> bool:
    """Whether a library that computes raised an error: a fault of ours, and no bad input.

    Files that cannot be read are complained of by parsers, and those are not among them.

    Args:
        error: that was caught.
    """
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    module = "" if trace is None else str(trace.tb_frame.f_globals.get("__name__", ""))
    return module.partition(".")[0] in _COMPUTING


def system_error_line(error: OSError) -> str:
    """What the system would not do, with the name of the file alone."""
    if error.errno is None:  # raised by our own code, with a sentence
        return str(error)
    reason = error.strerror or type(error).__name__
    if error.filename is None:
        return f"The output cannot be written: {reason}."
    return f"{Path(os.fsdecode(error.filename)).name} cannot be used: {reason}."


def leave_output() -> None:
    """Sends what is still written to stdout nowhere: its reader is gone, or its disk is full.

    Else Python tries once more at its end, and complains in lines of its own.
    """
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
