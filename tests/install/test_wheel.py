import base64
import csv
import hashlib
import sys
import tarfile
import zipfile
from email import message_from_bytes

import pytest

PTH = "torch_forwardfix.pth"
START = "torch_forwardfix.start"


@pytest.fixture(scope="module")
def files(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def of_dist_info(files, file):
    (name,) = (name for name in files if name.endswith(f".dist-info/{file}"))
    return files[name]


def test_pth_is_one_line_at_the_root(files):
    assert files[PTH] == b"import torch_forwardfix; torch_forwardfix.init()\n"
    assert [name for name in files if name.endswith(".pth")] == [PTH]


def test_nothing_but_the_package_and_its_pth(files):
    top = {name.partition("/")[0] for name in files}
    assert {name for name in top if not name.endswith(".dist-info")} == {PTH, "torch_forwardfix"}


@pytest.mark.skipif(sys.version_info >= (3, 18), reason="from 3.18 on the next test asks for the opposite")
def test_start_file_is_not_shipped_yet(files):
    # It would suppress the .pth on Python 3.15, and cost far more there.
    assert not [name for name in files if name.endswith(".start")]


def test_start_file_is_shipped_where_pth_lines_are_ignored(files):
    assert sys.version_info < (3, 18) or START in files, "PEP 829: Python 3.18 ignores import lines in .pth files"


@pytest.mark.parametrize(
    "name", ["py.typed", "evidence.json", "__main__.py", "fixes/__init__.py", "unfixed/__init__.py"]
)
def test_package_data(files, name):
    assert f"torch_forwardfix/{name}" in files


def test_record_names_every_file_with_its_hash(files):
    rows = {name: digest for name, digest, _ in csv.reader(of_dist_info(files, "RECORD").decode().splitlines())}
    assert set(rows) == set(files)
    for name, digest in rows.items():
        if not name.endswith("/RECORD"):
            found = base64.urlsafe_b64encode(hashlib.sha256(files[name]).digest()).rstrip(b"=").decode()
            assert digest == f"sha256={found}", name


def test_metadata(files):
    metadata = message_from_bytes(of_dist_info(files, "METADATA"))
    assert metadata["Name"] == "torch-forwardfix"
    assert metadata["Requires-Python"] == ">=3.10"
    assert sorted(metadata.get_all("Requires-Dist")) == ["importlib-metadata", "packaging", "torch"]


def test_wheel_is_pure(files):
    tags = message_from_bytes(of_dist_info(files, "WHEEL"))
    assert tags["Root-Is-Purelib"] == "true"
    assert tags.get_all("Tag") == ["py3-none-any"]


def test_build_is_reproducible(built):
    assert built.wheel_again.name == built.wheel.name
    assert built.wheel_again.read_bytes() == built.wheel.read_bytes()


def test_wheel_from_sdist_is_the_same(built):
    assert built.wheel_from_sdist.name == built.wheel.name
    assert built.wheel_from_sdist.read_bytes() == built.wheel.read_bytes()


@pytest.mark.parametrize("name", [PTH, START, "LICENSE", "setup.cfg"])
def test_sdist_holds(built, name):
    with tarfile.open(built.sdist) as archive:
        assert name in {member.partition("/")[2] for member in archive.getnames()}
