"""Files and temporary folders that last as long as a process: a lock on them says whether it lives.

The kernel gives a lock up when its process ends, by SIGKILL too. What has a lock that nobody holds belongs to
the dead, and is swept at the next start.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import stat
import tempfile
from pathlib import Path

PREFIX = "sooner-"
"""Of temporary folders."""

_LOCK = ".held"
_MOST = 1_000  # folders looked at in one sweep


class LockFile:
    """A lock file at `path`, held until `release` or the end of this process. Raises OSError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")  # it appears when it is held
        self._file: int | None = os.open(draft, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOFOLLOW, 0o644)
        with contextlib.suppress(OSError):  # a file system without locks: nobody's files are swept there
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        draft.replace(path)

    def release(self) -> None:
        """Give the lock up; its file goes. A second call does nothing."""
        file, self._file = self._file, None
        if file is not None:
            self.path.unlink(missing_ok=True)
            os.close(file)


def is_held(path: Path) -> bool:
    """Return whether a lock file is there and its process lives; True where locks do not work."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: two that look do not see each other
    except OSError:
        return True
    finally:
        os.close(file)
    return False


class HeldFolder:
    """A temporary folder of this process; those of dead processes of this user are swept before."""

    def __init__(self, kind: str = "") -> None:
        sweep(Path(tempfile.gettempdir()))
        self.path = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{kind}"))
        self._lock = LockFile(self.path / _LOCK)
        self._owner = os.getpid()

    def close(self) -> None:
        """Remove the folder and what is in it; a forked child does nothing, for it is its parent's."""
        if os.getpid() != self._owner:
            return
        self._lock.release()
        shutil.rmtree(self.path, ignore_errors=True)


def sweep(parent: Path) -> None:
    """Remove the temporary folders of this user in `parent` that dead processes left; never raises."""
    with contextlib.suppress(OSError):
        for folder in sorted(parent.glob(f"{PREFIX}*"))[:_MOST]:
            if _is_own_folder(folder) and (folder / _LOCK).exists() and not is_held(folder / _LOCK):
                shutil.rmtree(folder, ignore_errors=True)


def _is_own_folder(path: Path) -> bool:
    try:
        about = path.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(about.st_mode) and about.st_uid == os.geteuid()
