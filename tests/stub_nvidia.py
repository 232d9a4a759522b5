"""Make a CUDA build of torch importable on a machine without a GPU and without 3 GB of nvidia packages.

For each nvidia library that torch's own libraries need and that is not there, it compiles an empty one that has the
needed symbols in the needed versions; all of them return an error code. torch then runs on the CPU. Linux, with gcc and
binutils.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import defaultdict
from pathlib import Path

NVIDIA = ("libcu", "libnv", "libnccl")

# Symbols without a version carry no library name: their prefix tells. The first match counts.
HOMES = (
    ("nccl", "libnccl"),
    ("cudnn", "libcudnn"),
    ("cusparseLt", "libcusparseLt"),
    ("cusparse", "libcusparse"),
    ("cusolver", "libcusolver"),
    ("cublasLt", "libcublasLt"),
    ("cublas", "libcublas"),
    ("cufft", "libcufft"),
    ("curand", "libcurand"),
    ("cuFile", "libcufile"),
    ("cupti", "libcupti"),
    ("nvrtc", "libnvrtc"),
    ("nvshmem", "libnvshmem"),
    ("nvtx", "libnvtx"),
    ("cuda", "libcudart"),
    ("__cuda", "libcudart"),
    ("cu", "libcuda.so"),
)


def output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def make_stubs(folder: Path) -> None:
    missing: set[str] = set()  # names of the libraries to make
    versions: dict[str, str] = {}  # symbol version -> library
    undefined: set[str] = set()
    defined: set[str] = set()
    for library in [*folder.glob("*.so*"), *folder.parent.glob("_C*.so")]:
        if library.is_symlink():
            continue
        needed = re.findall(r"NEEDED.*\[(.*)\]", output("readelf", "-d", "-W", str(library)))
        missing.update(name for name in needed if name.startswith(NVIDIA) and not (folder / name).exists())
        current = ""
        for line in output("readelf", "-V", "-W", str(library)).splitlines():
            if match := re.search(r"File: (\S+)", line):
                current = match[1]
            if (match := re.search(r"Name: (\S+)\s+Flags", line)) and current:
                versions[match[1]] = current
        for line in output("nm", "-D", str(library)).splitlines():
            words = line.split()
            if len(words) == 2 and words[0] in ("U", "w"):
                undefined.add(words[1])
            elif len(words) == 3:
                defined.add(words[2].split("@")[0])

    symbols: dict[str, dict[str, list[str]]] = {name: defaultdict(list) for name in missing}
    for version, library_name in versions.items():
        if library_name in missing and version != library_name:
            symbols[library_name][version] = []
    for symbol in undefined:
        name, _, version = symbol.partition("@")
        version = version.lstrip("@")
        if name in defined:
            continue
        if version:
            if versions.get(version) in missing:
                symbols[versions[version]][version].append(name)
            continue
        home = next((home for prefix, home in HOMES if name.startswith(prefix)), None)
        for library_name in missing:
            if home and library_name.startswith(home):
                symbols[library_name][""].append(name)

    for library_name in sorted(missing):
        compile_stub(folder / library_name, symbols[library_name])


def compile_stub(path: Path, symbols: dict[str, list[str]]) -> None:
    names = sorted({name for group in symbols.values() for name in group})
    source = "".join(f"int {name}(void) {{ return 100; }}\n" for name in names) or "int torch_forwardfix_stub;\n"
    script = "".join(
        f"{version} {{ {'global: ' + '; '.join(group) + ';' if group else ''} }};\n"
        for version, group in symbols.items()
        if version
    )
    command = ["gcc", "-shared", "-fPIC", "-w", "-x", "c", "-", f"-Wl,-soname,{path.name}", "-o", str(path)]
    with tempfile.NamedTemporaryFile("w", suffix=".map") as version_script:
        if script:
            version_script.write(script)
            version_script.flush()
            command.append(f"-Wl,--version-script={version_script.name}")
        subprocess.run(command, input=source, text=True, check=True)
