"""What tells an unchanged file from a changed one."""

from dataclasses import dataclass

MAX_FILE_BYTES = 4 << 30  # no image is larger; a file that is would fill the memory before a decoder could say so


@dataclass(frozen=True)
class FileStamp:
    """Size in bytes and modification time in ns: while both stay, a file is taken as unchanged."""

    size: int
    mtime_ns: int
