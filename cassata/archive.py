"""Zip archives of scripts: what may be in one, checked when it comes and again when it is unpacked.

What a zip file says of itself cannot be trusted: names lead elsewhere, and a few kilobytes become gigabytes.
"""

from __future__ import annotations

import contextlib
import io
import stat
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

SCRIPT = "script.sh"
PAYLOAD = "payload"
PREVIOUS = "previous.json"
"""What a script is given lies under these names at its root, beside its own files."""
MOST_BYTES = 8 * 1024 * 1024
MOST_FILES = 1_000
MOST_UNPACKED_BYTES = 64 * 1024 * 1024
MOST_RATIO = 200
"""So many times its packed size a file of more than a mebibyte may have."""
FREE_BYTES = 1024 * 1024
LONGEST_NAME = 200
_STEP_BYTES = 256 * 1024
_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
_ENCRYPTED = 0x1


class InvalidArchive(ValueError):
    """It is no archive that may be unpacked; the message says why, and what to do."""


def check(archive: bytes) -> None:
    """Read all of an archive, as unpacking it would. Raises InvalidArchive."""
    for _, _, pieces in _files(archive):
        for _ in pieces:
            pass


def unpack(archive: bytes, folder: Path) -> None:
    """Write the files of an archive into an empty folder of ours. Raises InvalidArchive, having written some of it, and OSError."""
    for path, executable, pieces in _files(archive):
        target = folder.joinpath(*path.parts)
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with target.open("xb") as file:
            for piece in pieces:
                file.write(piece)
        target.chmod(0o700 if executable else 0o600)


def _files(archive: bytes) -> Iterator[tuple[PurePosixPath, bool, Iterator[bytes]]]:
    """Yield each file's place, whether it is a program, and its content, which has to be read before the next one."""
    if len(archive) > MOST_BYTES:
        raise InvalidArchive(f"is {len(archive):,} bytes long; at most {MOST_BYTES:,} are accepted")
    with _explained():
        opened = zipfile.ZipFile(io.BytesIO(archive))
        members = _checked(opened.infolist())
    for path, member in members.items():
        yield path, bool(member.external_attr >> 16 & 0o111), _content(opened, member)


def _content(opened: zipfile.ZipFile, member: zipfile.ZipInfo) -> Iterator[bytes]:
    left = member.file_size
    with _explained(), opened.open(member) as file:
        while piece := file.read(_STEP_BYTES):
            left -= len(piece)
            if left < 0:
                raise InvalidArchive(f"holds more of {member.filename!r} than it says")
            yield piece
    if left:
        raise InvalidArchive(f"holds less of {member.filename!r} than it says")


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Raise InvalidArchive for whatever a damaged archive leads to. What is done with its content raises what it raises."""
    try:
        yield
    except InvalidArchive:
        raise
    except (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, RuntimeError, EOFError, OverflowError, ValueError) as error:
        raise InvalidArchive(f"is no zip archive that can be read: {error}") from error
    except zlib.error as error:
        raise InvalidArchive(f"is damaged: {error}") from error


def _checked(members: list[zipfile.ZipInfo]) -> dict[PurePosixPath, zipfile.ZipInfo]:
    """Return the files by their places. Raises InvalidArchive."""
    if len(members) > MOST_FILES:
        raise InvalidArchive(f"holds {len(members):,} files and folders; at most {MOST_FILES:,} are accepted")
    if (unpacked := sum(member.file_size for member in members)) > MOST_UNPACKED_BYTES:
        raise InvalidArchive(f"is {unpacked:,} bytes long when unpacked; at most {MOST_UNPACKED_BYTES:,} are accepted")
    files: dict[PurePosixPath, zipfile.ZipInfo] = {}
    folders: set[str] = set()
    for member in members:
        path = _place(member)
        if member.is_dir():
            folders.add(str(path).casefold())
            continue
        _check_member(member)
        files[path] = member
        folders |= {str(parent).casefold() for parent in path.parents}
    names = [str(path).casefold() for path in files]  # where a file system folds them, two would be one
    if len(set(names)) < len(names) or folders & set(names):
        raise InvalidArchive("holds two files of the same name")
    if taken := {PAYLOAD, PREVIOUS} & (folders | set(names)):
        raise InvalidArchive(f"holds {min(taken)!r} at its root, where each run is given a file of that name: choose another one")
    if PurePosixPath(SCRIPT) not in files:
        raise InvalidArchive(f"has no {SCRIPT} at its root: zip the content of the folder, not the folder")
    return files


def _place(member: zipfile.ZipInfo) -> PurePosixPath:
    name = member.filename
    path = PurePosixPath(name)
    is_odd = not name or len(name) > LONGEST_NAME or "\\" in name or ":" in name or not name.isprintable()
    if is_odd or path.is_absolute() or ".." in path.parts or not path.parts or member.orig_filename != name:
        raise InvalidArchive(f"holds {name[:LONGEST_NAME]!r}, which is not the name of a file in it")
    return path


def _check_member(member: zipfile.ZipInfo) -> None:
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind not in {0, stat.S_IFREG}:
        raise InvalidArchive(f"holds {member.filename!r}, which is no plain file: links and devices are not accepted")
    if member.flag_bits & _ENCRYPTED:
        raise InvalidArchive(f"holds {member.filename!r}, which is encrypted")
    if member.compress_type not in _METHODS:
        raise InvalidArchive(f"holds {member.filename!r}, which is packed in a way that is not accepted: use deflate")
    if member.file_size > FREE_BYTES and member.file_size > MOST_RATIO * max(1, member.compress_size):
        raise InvalidArchive(f"holds {member.filename!r}, which is more than {MOST_RATIO} times its packed size")


def packed(folder: Path) -> bytes:
    """Make an archive of a folder, for uploading it. Raises InvalidArchive, OSError."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_symlink():
                raise InvalidArchive(f"holds {str(file.relative_to(folder))!r}, which is a link")
            if file.is_file():
                archive.write(file, str(file.relative_to(folder)))
    check(made.getvalue())
    return made.getvalue()
