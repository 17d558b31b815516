"""Downloads that survive a bad network: mirrors, checksums, resumption, a progress bar.

A file appears under its own name only when it is complete and its checksum fits. Until then it is
``<name>.part``, which a later attempt continues and nothing else reads.
"""

from __future__ import annotations

import errno
import http.client
import logging
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

from filelock import FileLock
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from tasks.data.errors import DataError
from tasks.data.integrity import digest, verify

logger = logging.getLogger(__name__)

_CHUNK = 1 << 16


class _TransferError(Exception):
    """One attempt that failed; ``final`` where trying the same address again is of no use."""

    def __init__(self, message: str, *, final: bool = False) -> None:
        super().__init__(message)
        self.final = final


Check = Callable[[Path], None]
"""Raises a :class:`DataError` for a file whose content is not right."""


def obtain(
    urls: Sequence[str], path: Path, checksum: str | None, check: Check | None = None
) -> Path:
    """The file at ``path``, checked; downloaded first where it is missing.

    Args:
        urls: the official address and its mirrors, tried in this order.
        path: where the file is or goes.
        checksum: ``md5:...`` or ``sha256:...``; ``None`` where the source publishes none.
        check: looks into what was downloaded, where there is no checksum.

    Raises:
        DataError: the file is not what it should be, or missing and cannot be downloaded.
    """
    if not path.is_file():
        return fetch(urls, path, checksum, check)
    if checksum is not None:
        command = _command(urls[0], path)
        verify(path, checksum, f"Delete it and run again, or replace it with: {command}")
    return path


def fetch(
    urls: Sequence[str],
    path: Path,
    checksum: str | None,
    check: Check | None = None,
    *,
    timeout: float = 30.0,
    attempts: int = 3,
    pause: float = 1.0,
) -> Path:
    """Download a file.

    Args:
        urls: the official address and its mirrors, tried in this order.
        path: where it goes; its folder is made.
        checksum: ``md5:...`` or ``sha256:...``, or ``None`` where none is known.
        check: looks into the file before it gets its name, where there is no checksum; a file that
            it refuses is thrown away.
        timeout: seconds without a byte after which a connection counts as stalled.
        attempts: per address; each continues where the last one broke off.
        pause: seconds before the second attempt, doubled before each further one.

    Returns:
        ``path``.

    Raises:
        DataError: no address delivered the file, or it cannot be written.
    """
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_name(f".{path.name}.lock")
        with FileLock(lock):  # parallel runs download once
            if path.is_file():
                return obtain(urls, path, checksum)
            problems = _try_all(urls, part, checksum, check, timeout, attempts, pause)
            if problems is None:
                os.replace(part, path)
                lock.unlink(missing_ok=True)  # those who wait for it find the file
                return path
    except OSError as error:
        if error.errno == errno.ENOSPC:
            part.unlink(missing_ok=True)
        raise DataError(
            f"{path} is missing and cannot be written: {error}. Set data.root (or SNOPT_DATA) to a "
            f"folder that you may write to and that has room, or: {_command(urls[0], path)}"
        ) from error
    wanted = f" (expected {checksum})" if checksum else ""
    raise DataError(
        f"{path}{wanted} is missing and could not be downloaded: {'; '.join(problems)}. "
        f"Run again to continue, name the folder that has it with data.root=DIR, or put it there "
        f"with: {_command(urls[0], path)}"
    )


def _command(url: str, path: Path) -> str:
    return f"curl -L --create-dirs -o '{path}' '{url}'"


def _try_all(
    urls: Sequence[str],
    part: Path,
    checksum: str | None,
    check: Check | None,
    timeout: float,
    attempts: int,
    pause: float,
) -> list[str] | None:
    """What went wrong at each address, or ``None`` when ``part`` is complete and right."""
    problems = []
    for url in urls:
        for attempt in range(attempts):
            if attempt:
                time.sleep(pause * 2 ** (attempt - 1))
            resumed = part.is_file()
            try:
                _transfer(url, part, timeout)
            except _TransferError as error:
                problem = str(error)
                if error.final:
                    break
                continue
            refusal = _refusal(part, checksum, check)
            if refusal is None:
                return None
            part.unlink()
            problem = refusal
            if not resumed:  # the address itself serves something else
                break
        problems.append(f"{url}: {problem}")
    return problems


def _refusal(part: Path, checksum: str | None, check: Check | None) -> str | None:
    """What is wrong with a file that arrived, or ``None``."""
    if checksum is not None:
        found = digest(part, checksum.partition(":")[0])
        return None if found == checksum else f"expected {checksum}, found {found}"
    if check is not None:
        try:
            check(part)
        except DataError as error:
            return f"what came is not the file ({error})"
    return None


def _transfer(url: str, part: Path, timeout: float) -> None:
    """Append to ``part`` what is missing of the file at ``url``."""
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise _TransferError("not an http or https address", final=True)
    offset = part.stat().st_size if part.is_file() else 0
    logger.info("downloading %s%s", url, f", from byte {offset}" if offset else "")
    request = urllib.request.Request(url, headers={"Accept-Encoding": "identity"})
    if offset:
        request.add_header("Range", f"bytes={offset}-")
    try:
        with _connected(request, timeout) as response:
            _receive(response, part, offset, url)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:  # the part is as long as the file, or longer: not to be continued
            part.unlink(missing_ok=True)
            raise _TransferError("the partial file could not be continued") from error
        final = 400 <= error.code < 500 and error.code not in (408, 429)
        raise _TransferError(f"HTTP {error.code} {error.reason}", final=final) from error
    except (urllib.error.URLError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise _TransferError(f"{type(error).__name__}: {reason}") from error
    except ValueError as error:  # a redirect to what is no address
        raise _TransferError(f"{type(error).__name__}: {error}", final=True) from error


def _connected(request: urllib.request.Request, timeout: float) -> http.client.HTTPResponse:
    try:
        response: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.URLError:
        raise
    except OSError as error:  # while the answer's head was read
        raise _TransferError(f"{type(error).__name__}: {error}") from error
    return response


def _read(response: http.client.HTTPResponse) -> bytes:
    """What has come of the content; whatever goes wrong here is the network's doing."""
    try:
        return response.read1(_CHUNK)
    except OSError as error:
        raise _TransferError(f"{type(error).__name__}: {error}") from error


def _receive(response: http.client.HTTPResponse, part: Path, offset: int, url: str) -> None:
    continued = response.status == 206
    if continued and not response.headers.get("Content-Range", "").startswith(f"bytes {offset}-"):
        raise _TransferError("the server continued at another place than asked", final=True)
    length = response.headers.get("Content-Length")
    begin = offset if continued else 0
    total = begin + int(length) if length and length.isdigit() else None
    with part.open("ab" if continued else "wb") as file, _progress() as progress:
        task = progress.add_task(Path(urllib.parse.urlsplit(url).path).name, total=total)
        progress.update(task, completed=begin)
        received = begin
        while chunk := _read(response):
            file.write(chunk)
            received += len(chunk)
            progress.update(task, completed=received)
    if total is not None and received != total:
        raise _TransferError(f"broke off after {received} of {total} bytes")


def _progress() -> Progress:
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        console=console,
        disable=not console.is_terminal,
    )
