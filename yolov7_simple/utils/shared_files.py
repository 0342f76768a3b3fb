"""Files that the processes of a machine share, with all their room reserved, and gone when the last process ends."""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mmengine.dist import get_world_size
from tqdm import tqdm

from .options import OptionError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

GB = 1 << 30
RESERVED_AT_ONCE = GB // 4
CGROUPS = Path('/sys/fs/cgroup')


def free_bytes(folder: str | None) -> int:
    """Bytes that are free on the disk of a folder; without a folder, in the memory of this machine or container."""
    if folder is not None:
        try:
            return shutil.disk_usage(folder).free
        except OSError as error:
            raise OptionError(f'{folder} cannot hold a cache: {error.strerror}. Set another cache_folder') from error
    with suppress(OSError):
        lines = dict(line.split(':') for line in Path('/proc/meminfo').read_text().splitlines())
        free = int(lines['MemAvailable'].split()[0]) * 1024
        return max(0, min([free, *container_limits()]))
    return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') // 2


def container_limits() -> Iterator[int]:
    """Bytes that the container's limits (cgroups, version 2 and 1) leave; cached files count as free."""
    for limit_file, used_file, cached in (
        ('memory.max', 'memory.current', 'inactive_file'),
        ('memory/memory.limit_in_bytes', 'memory/memory.usage_in_bytes', 'total_inactive_file'),
    ):
        with suppress(OSError, ValueError):
            limit = int((CGROUPS / limit_file).read_text())  # 'max' if there is none
            used = int((CGROUPS / used_file).read_text())
            lines = (CGROUPS / limit_file).with_name('memory.stat').read_text().splitlines()
            yield limit - used + int(dict(line.split() for line in lines).get(cached, 0))


def reserved_file(num_bytes: int, folder: str | None) -> tuple[int, str]:
    """Make a file of zeros whose room is reserved, so that no process can run out of it later.

    Args:
        num_bytes: Its size.
        folder: Where; None: in memory, which Linux alone can do.

    Returns:
        Its descriptor, and a path that other processes can open while this one lives.

    Raises:
        OSError: There is no room.
        OptionError: The system cannot do this.
    """
    if fcntl is None or (folder is None and not hasattr(os, 'memfd_create')):
        raise OptionError("cache_images='ram' needs Linux, and 'disk' Linux or macOS: leave it out here")
    if folder is None:
        file, path = os.memfd_create('yolov7_simple'), ''
    else:
        file, path = tempfile.mkstemp(prefix='yolov7_simple_', dir=folder)
    if path and sys.platform == 'linux':
        os.unlink(path)
    elif path:
        atexit.register(lambda: Path(path).unlink(missing_ok=True))
    try:
        os.ftruncate(file, num_bytes)
        steps = range(0, num_bytes, RESERVED_AT_ONCE) if hasattr(os, 'posix_fallocate') else ()
        for start in tqdm(steps, desc='Room for images', disable=None, delay=1, leave=False):
            os.posix_fallocate(file, start, min(RESERVED_AT_ONCE, num_bytes - start))
    except OSError:
        os.close(file)
        raise
    return file, f'/proc/{os.getpid()}/fd/{file}' if sys.platform == 'linux' else path


def shared_path(name: str, make: Callable[[], str], is_right: Callable[[str], bool]) -> str:
    """Path that all ranks on this machine use; the first that comes makes it.

    Ranks find each other by the process that started them, as torchrun, Slurm and MPI start all those of a machine.

    Args:
        name: What the path is of, the same on all ranks.
        make: Makes the file, and returns its path.
        is_right: Whether a path still leads to this file: a note may be of processes that are gone.
    """
    if get_world_size() == 1:
        return make()
    note = Path(tempfile.gettempdir(), f'yolov7_simple_{os.getuid()}_{os.getppid()}_{name[:16]}')
    with open(note, 'a+') as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        path = file.read()
        if not path or not is_right(path):
            file.truncate(0)
            path = make()
            file.write(path)
            atexit.register(lambda: note.unlink(missing_ok=True))
    return path


@contextmanager
def locked(file: int, place: int) -> Iterator[None]:
    """Lock one place of a file against other processes; of a process that is killed, the system frees the lock."""
    fcntl.lockf(file, fcntl.LOCK_EX, 1, place)
    try:
        yield
    finally:
        fcntl.lockf(file, fcntl.LOCK_UN, 1, place)
