"""What the operating system's errors mean to a store. Pure.

Only some errors say anything about what the disk holds. All others speak of this process, of this machine, or of how the disk was
mounted (a full table of open files, no memory, no permission): nobody knows then whether a copy is good, so it must not be given up. What
is not known here counts as one of these.
"""

from __future__ import annotations

import errno

MEDIUM = frozenset(
    number
    for name in ("EIO", "EBADMSG", "EUCLEAN", "ENODATA", "EREMOTEIO", "EILSEQ")
    if (number := getattr(errno, name, None)) is not None  # some of them are Linux's own
)
"""Bytes that the device can't give, or that it or the file system knows to be wrong: an I/O error, the checksum or the structure of a file
system, a critical error of the medium or of the device, protection information that does not match."""

NO_DESCRIPTOR = frozenset({errno.EMFILE, errno.ENFILE})
"""Too many files are open, in this process or on this machine: nothing was done."""

PASSING = NO_DESCRIPTOR | {errno.ENOMEM}
"""Something is missing that has nothing to do with the disk, and that may come back."""

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


def is_of_medium(error: OSError) -> bool:
    """Whether an error says that bytes can't be had from the disk any more."""
    return error.errno in MEDIUM
