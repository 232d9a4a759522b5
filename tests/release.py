"""Sources and sdists without a trace of the machine that they come from, for ``nox --session release``."""

from __future__ import annotations

import gzip
import io
import subprocess
import tarfile
from pathlib import Path

HERE = Path(__file__).parent


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=HERE, check=True, capture_output=True, text=True).stdout.strip()


def export(folder: Path) -> None:
    """Put what is committed into a new folder."""
    command = ["git", "-C", str(HERE.parent), "archive", "HEAD"]
    archive = subprocess.run(command, check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        # The filter leaves out what the umask of git would put into the modes.
        files.extractall(folder, filter="data")


def repack(sdist: Path, seconds: int) -> None:
    """Write an sdist anew in the order of its names; every file is of that time since the epoch, and of nobody.

    setuptools puts the time and the user of the build into it, whatever SOURCE_DATE_EPOCH says.
    """
    with tarfile.open(sdist) as archive:
        members = sorted(archive.getmembers(), key=lambda member: member.name)
        contents = [file.read() if (file := archive.extractfile(member)) else None for member in members]
    with gzip.GzipFile(sdist, "wb", mtime=seconds) as zipped, tarfile.open(fileobj=zipped, mode="w") as archive:
        for member, content in zip(members, contents, strict=True):
            clean = tarfile.TarInfo(member.name)
            clean.type, clean.size, clean.mtime = member.type, member.size, seconds
            clean.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
            archive.addfile(clean, None if content is None else io.BytesIO(content))
