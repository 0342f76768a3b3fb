"""Files that are not on this machine's disks: over HTTP, which may fail for a while, and in LMDB."""

from __future__ import annotations

import errno
import os
import random
import string
import tempfile
import time
import urllib.parse
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from ssl import SSLCertVerificationError
from typing import Annotated, Any, ClassVar
from urllib.error import HTTPError
from urllib.request import urlopen

from mmengine.fileio import HTTPBackend, LmdbBackend, LocalBackend, get_file_backend
from mmengine.logging import print_log

from ..runtime.errors import UserError
from ..utils.options import CountOr0, Range, checked_options

PASSING = {408, 425, 429, 500, 502, 503, 504}  # answers of HTTP that may be others a moment later
FIRST_PAUSE = 0.5  # seconds before the second attempt; each further pause is twice as long
MAX_PAUSE = 30.0
MAX_FAILED = 4  # files in a row that a server does not give before it is taken to be down


class RemoteError(UserError):
    """A server that is down, or a database that cannot be opened; the message names it."""


def is_remote(path: str, backend_args: dict | None) -> bool:
    """Whether mmengine reads this path from elsewhere than the file system.

    Raises:
        RemoteError: mmengine has no backend of that name, or it does not take these options.
    """
    try:
        return not isinstance(get_file_backend(path, backend_args=backend_args, enable_singleton=True), LocalBackend)
    except (KeyError, TypeError) as error:
        raise RemoteError(f'{path}: mmengine has no file backend for it with backend_args={backend_args}') from error


@checked_options
class RetryingHTTPBackend(HTTPBackend):
    """mmengine's HTTPBackend, with a timeout, and with further attempts where a failure may pass.

    Timeouts, connections that are refused or closed, and answers such as 503 are tried again, after pauses that double.
    Each process logs its first such failure, and the second, fourth, eighth and so on, with their number.

    Args:
        timeout: Seconds without a byte after which an attempt has failed.
        retries: Further attempts after the first.
    """

    def __init__(self, timeout: Annotated[float, Range(0.1)] = 10.0, retries: CountOr0 = 3) -> None:
        self.timeout = timeout
        self.retries = retries
        self._num_failures = 0
        self._failed_in_a_row: Counter[str] = Counter()  # files that no attempt gave, by server

    def get(self, filepath: str | Path) -> bytes:
        """Read a file.

        Raises:
            OSError: It cannot be read; ``strerror`` says why.
            RemoteError: Its server has not given the last files either.
        """
        url = str(filepath)
        server = '://'.join(urllib.parse.urlsplit(url)[:2])
        # A server that did not give the last file is not waited for long.
        attempts = 1 + min(self.retries, 1 if self._failed_in_a_row[server] else self.retries)
        for attempt in range(attempts):
            try:
                # Names of files may have spaces and umlauts.
                with urlopen(urllib.parse.quote(url, safe=string.punctuation), timeout=self.timeout) as answer:
                    content = answer.read()
            except (OSError, HTTPException) as error:
                reason = self._describe(error)
                if not self._may_pass(error):
                    raise OSError(errno.ENOENT, reason, url) from error
                self._note(f'{url}: {reason} (attempt {attempt + 1} of {attempts})')
                if attempt + 1 < attempts:
                    # Workers must not come back all at once.
                    time.sleep(min(FIRST_PAUSE * 2**attempt, MAX_PAUSE) * random.uniform(1, 1.5))
            else:
                self._failed_in_a_row[server] = 0
                return content
        self._failed_in_a_row[server] += 1
        if self._failed_in_a_row[server] >= MAX_FAILED:
            raise RemoteError(
                f'{server} gave none of the last {MAX_FAILED} files; the last one, {url}: {reason}. Look at the '
                'server, and at data_root and data_prefix of the dataset'
            )
        raise OSError(errno.EIO, f'{reason}, in {attempts} attempts', url)

    def get_text(self, filepath: str | Path, encoding: str = 'utf-8') -> str:
        """Read a text; otherwise as :meth:`get`."""
        return self.get(filepath).decode(encoding)

    def join_path(self, filepath: str | Path, *filepaths: str | Path) -> str:
        """Join the parts of a URL, which mmengine does with each ``data_root``."""
        return os.path.join(str(filepath), *map(str, filepaths))

    def _describe(self, error: Exception) -> str:
        if isinstance(error, HTTPError):
            return f'HTTP {error.code} {error.reason}'
        reason = getattr(error, 'reason', error)  # of URLError
        if isinstance(reason, TimeoutError):
            return f'no answer within {self.timeout:g} s'
        return str(getattr(reason, 'strerror', None) or reason or type(reason).__name__)

    @staticmethod
    def _may_pass(error: Exception) -> bool:
        if isinstance(error, HTTPError):
            return error.code in PASSING
        return not isinstance(getattr(error, 'reason', None), SSLCertVerificationError)

    def _note(self, failure: str) -> None:
        """Log failures ever more rarely."""
        self._num_failures += 1
        if self._num_failures & (self._num_failures - 1) == 0:
            print_log(f'{failure}; failures of process {os.getpid()}: {self._num_failures}', 'current', level=30)


class ForkedLmdbBackend(LmdbBackend):
    """mmengine's LmdbBackend, which each process opens for itself, and which names what it lacks.

    A database that was opened before a fork, as for the annotations, must not be used by the workers.

    Args:
        args, kwargs: As of LmdbBackend.

    Raises:
        RemoteError: The package lmdb is missing.
    """

    _client: Any = None
    _clients: ClassVar[dict[tuple[int, str], Any]] = {}  # by process and path: lmdb opens nothing twice

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        try:
            super().__init__(*args, **kwargs)
        except ImportError as error:
            raise RemoteError('backend_args: LMDB needs the package lmdb: pip install lmdb') from error

    def get(self, filepath: str | Path) -> bytes:
        """Read the value of a key.

        Raises:
            OSError: There is no such key.
            RemoteError: The database cannot be opened or read.
        """
        import lmdb

        key = (os.getpid(), os.path.realpath(self.db_path))
        try:
            if key not in self._clients:
                for other in [one for one in self._clients if one[0] != key[0]]:
                    del self._clients[other]  # of the process that was forked, where lmdb leaves them open
                self._clients[key] = self._get_client()
            self._client = self._clients[key]
            value = super().get(filepath)
        except lmdb.Error as error:
            raise RemoteError(f'LMDB {self.db_path}: {error}: look at db_path in backend_args') from error
        except UnicodeEncodeError as error:
            raise OSError(errno.ENOENT, 'is no key of LMDB: mmengine reads keys in ASCII', str(filepath)) from error
        finally:
            self._client = None
        if value is None:
            raise OSError(errno.ENOENT, f'no such key in LMDB {self.db_path}', str(filepath))
        return value

    def get_text(self, filepath: str | Path, encoding: str = 'utf-8') -> str:
        """Read a text; otherwise as :meth:`get`."""
        return self.get(filepath).decode(encoding)

    @contextmanager
    def get_local_path(self, filepath: str | Path) -> Iterator[str]:
        """Write the value of a key into a temporary file."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, Path(filepath).name)
            path.write_bytes(self.get(filepath))
            yield str(path)
