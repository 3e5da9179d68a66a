"""Whether a directory lies on the file system that its operator means, so that an unmounted disk is not taken for an empty one."""

from __future__ import annotations

import os
import re
from pathlib import Path

from cluster.errors import Invalid

MOUNT_TABLE = Path("/proc/self/mountinfo")
"""Linux's list of mount points. Unlike a comparison of devices it knows bind mounts of the same file system, as containers have."""

_ESCAPED = re.compile(r"\\([0-7]{3})")


def require_mount(directory: Path, wanted: Path | bool) -> None:
    """Raises Invalid unless ``directory`` (which need not exist) lies on a mounted disk: below the mount point ``wanted``, or, when that
    is True, on a file system other than that of ``/`` or at a mount point."""
    if wanted is False:
        return
    place = Path(os.path.realpath(directory))
    if wanted is not True:
        mount = Path(os.path.realpath(wanted))
        if not place.is_relative_to(mount):
            raise Invalid(f"the data directory {directory} does not lie below require_mount = {wanted}", field="data")
        if not is_mount_point(mount):
            raise Invalid(
                f"{wanted} is not mounted, and require_mount says that the data directory lies there: mount the disk, then start "
                "the node again",
                field="require_mount",
            )
        return
    existing = next(path for path in (place, *place.parents) if path.exists())
    if existing.stat().st_dev == Path("/").stat().st_dev and not is_mount_point(place):
        raise Invalid(
            f"the data directory {directory} lies on the file system of / and is no mount point, which require_mount forbids: "
            "mount its disk, then start the node again",
            field="require_mount",
        )


def is_mount_point(path: Path) -> bool:
    """``path`` is absolute and free of symbolic links."""
    return os.path.ismount(path) or str(path) in mount_points(_table())


def mount_points(table: str) -> frozenset[str]:
    """The fifth column of a mount table; white space in it is written in octal."""
    columns = (line.split() for line in table.splitlines())
    return frozenset(_ESCAPED.sub(lambda code: chr(int(code[1], 8)), line[4]) for line in columns if len(line) > 4)


def _table() -> str:
    try:
        return MOUNT_TABLE.read_text(errors="surrogateescape")
    except OSError:
        return ""  # not Linux: what os.path.ismount knows must do
