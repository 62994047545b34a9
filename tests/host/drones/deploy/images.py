"""Where the file system of the images lies."""

#: Bytes before and behind the file system that must never change, and where it begins.
OFFSET = 20 << 20
SIZE_MB = 32
