"""Zip archives that nobody should be able to upload, or have unpacked."""

from __future__ import annotations

import contextlib
import io
import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from cassata import archive
from cassata.archive import InvalidArchive
from tests.archives import zipped

GOOD = {"script.sh": "echo hello"}


def with_member(name: str, content: bytes = b"x", mode: int = 0) -> bytes:
    """Pack a good script beside something odd."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as opened:
        opened.writestr("script.sh", "echo hello")
        member = zipfile.ZipInfo(name)
        member.external_attr = mode << 16
        opened.writestr(member, content)
    return made.getvalue()


def lying_about_size() -> bytes:
    """Say of a bomb, in both of its headers, that it unpacks to a single byte."""
    bomb = zipped({"script.sh": bytes(4 * 1024 * 1024)})
    true, false = struct.pack("<I", 4 * 1024 * 1024), struct.pack("<I", 1)
    return bomb.replace(true, false)


def encrypted() -> bytes:
    packed = bytearray(zipped(GOOD))
    packed[6] |= 1  # the flags of the local header, and of the central one
    packed[packed.index(b"PK\x01\x02") + 8] |= 1
    return bytes(packed)


HOSTILE: dict[str, Callable[[], bytes]] = {
    "no archive": lambda: b"#!/bin/sh\necho hello",
    "empty": lambda: b"",
    "cut off": lambda: zipped(GOOD)[:-10],
    "without a script": lambda: zipped({"run.sh": "echo"}),
    "a script in a folder": lambda: zipped({"nightly/script.sh": "echo"}),
    "an absolute path": lambda: with_member("/etc/cron.d/x"),
    "a way out": lambda: with_member("../x"),
    "a way out further in": lambda: with_member("a/../../x"),
    "a way out of Windows": lambda: with_member("..\\x"),
    "a drive": lambda: with_member("C:x"),
    "an invisible name": lambda: with_member("a\nb"),
    "a long name": lambda: with_member("a" * 300),
    "a link": lambda: with_member("link", b"/etc/passwd", stat.S_IFLNK | 0o777),
    "a device": lambda: with_member("null", b"", stat.S_IFCHR | 0o666),
    "a pipe": lambda: with_member("pipe", b"", stat.S_IFIFO | 0o666),
    "a payload of its own": lambda: zipped({**GOOD, "payload": "x"}),
    "a folder in the payload's place": lambda: zipped({**GOOD, "payload/x": "x"}),
    "an empty folder in the payload's place": lambda: with_member("Payload/"),
    "an answer of its own": lambda: zipped({**GOOD, "previous.json": "{}"}),
    "two of a name": lambda: with_member("SCRIPT.SH"),
    "a file that is a folder, too": lambda: with_member("script.sh/x"),
    "a bomb": lambda: zipped({"script.sh": bytes(60 * 1024 * 1024)}),
    "a large bomb": lambda: zipped({"script.sh": bytes(65 * 1024 * 1024)}),
    "a bomb that lies": lying_about_size,
    "many files": lambda: zipped({**GOOD, **{f"f{number}": "" for number in range(1_001)}}),
    "too large": lambda: zipped(GOOD) + bytes(archive.MOST_BYTES),
    "encrypted": encrypted,
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_archive_is_neither_taken_nor_unpacked(kind: str, tmp_path: Path) -> None:
    packed = HOSTILE[kind]()
    folder = tmp_path / "in" / "here"
    folder.mkdir(parents=True)
    with pytest.raises(InvalidArchive):
        archive.check(packed)
    with pytest.raises(InvalidArchive):
        archive.unpack(packed, folder)
    outside = [path for path in tmp_path.rglob("*") if not path.is_relative_to(folder) and path != folder.parent]
    assert outside == []
    assert sum(path.stat().st_size for path in folder.rglob("*")) < archive.MOST_UNPACKED_BYTES


def test_every_damaged_archive_is_refused_or_read_and_nothing_else_is_raised() -> None:
    packed = zipped({**GOOD, "data": bytes(range(256)) * 8})
    for place in range(len(packed)):
        damaged = packed[:place] + bytes([packed[place] ^ 0xFF]) + packed[place + 1 :]
        with contextlib.suppress(InvalidArchive):
            archive.check(damaged)


def test_what_a_run_is_given_has_names_that_no_file_at_the_root_of_an_archive_may_have(tmp_path: Path) -> None:
    with pytest.raises(InvalidArchive, match="holds 'payload' at its root, where each run is given a file of that name"):
        archive.check(zipped({**GOOD, "payload": "x"}))
    archive.check(zipped({**GOOD, "data/payload": "x", "payload.txt": "x"}))


def test_what_is_packed_is_unpacked_with_its_folders_and_its_programs(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "bin").mkdir(parents=True)
    (source / "script.sh").write_text("bin/tool")
    (source / "bin" / "tool").write_text("#!/bin/sh\necho tool")
    (source / "bin" / "tool").chmod(0o755)
    target.mkdir()
    archive.unpack(archive.packed(source), target)
    assert (target / "script.sh").read_text() == "bin/tool"
    assert stat.S_IMODE((target / "bin" / "tool").stat().st_mode) == 0o700
    assert stat.S_IMODE((target / "script.sh").stat().st_mode) == 0o600


def test_a_folder_with_a_link_is_not_packed(tmp_path: Path) -> None:
    (tmp_path / "script.sh").symlink_to("/etc/passwd")
    with pytest.raises(InvalidArchive, match="link"):
        archive.packed(tmp_path)
