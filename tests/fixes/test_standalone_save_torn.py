import json

from conftest import check, in_range

IN_RANGE = in_range("standalone-save-torn")

ARTIFACTS = """
import json, os, shutil, stat, sys, threading
from pathlib import Path
import torch, torch._inductor
from torch._inductor import CompiledArtifact

def artifact(function, x):
    graphs = []
    torch.compile(function, backend=lambda graph, inputs: graphs.append(graph) or graph, fullgraph=True)(x)
    return torch._inductor.standalone_compile(graphs[0], [x])

x = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
first, second = artifact(lambda x: x @ x, x), artifact(lambda x: x @ x @ x, x)
folder = Path("artifacts")
shutil.rmtree(folder, ignore_errors=True)
folder.mkdir()
path = folder / "artifact"

def bytes_of(artifact):
    artifact.save(path=str(path))
    return path.read_bytes()

one, other = bytes_of(first), bytes_of(second)
assert one != other
"""

TEAR = (
    ARTIFACTS
    + """
seen = {}

# A reader in the middle of the file.
first.save(path=str(path))
with path.open("rb", buffering=0) as reader:
    begin = reader.read(len(one) // 2)
    second.save(path=str(path))
    seen["read while it was saved"] = "whole" if begin + reader.read() == one else "torn"
assert path.read_bytes() == other
assert torch.equal(CompiledArtifact.load(path=str(path))(x)[0], x @ x @ x)

# No place for more than half of the new file.
import resource
first.save(path=str(path))
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (len(other) // 2, hard))
try:
    second.save(path=str(path))
except OSError as error:
    assert error.errno == 27, error
else:
    raise SystemExit("saved in spite of the limit")
finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
seen["after a save that failed"] = "whole" if path.read_bytes() == one else "torn"
if seen["after a save that failed"] == "whole":
    assert torch.equal(CompiledArtifact.load(path=str(path))(x)[0], x @ x)
else:
    try:
        CompiledArtifact.load(path=str(path))
    except Exception as error:
        print("load of a torn file:", repr(error)[:200], file=sys.stderr)
    else:
        raise SystemExit("a torn file was loaded")
print(json.dumps(seen))
"""
)

SAVE_IN_PROCESSES = (
    ARTIFACTS
    + """
writers = []
for order in (first, second), (second, first):
    writer = os.fork()
    if writer == 0:
        for _ in range(150):
            for artifact in order:
                artifact.save(path=str(path))
        os._exit(0)
    writers.append(writer)
reads, torn = 0, 0
while writers:
    torn += path.read_bytes() not in (one, other)
    reads += 1
    writers = [writer for writer in writers if os.waitpid(writer, os.WNOHANG)[0] == 0]
assert reads > 50, reads
assert [*folder.iterdir()] == [path]
print(torn)
"""
)

KEEP = (
    ARTIFACTS
    + """
seen = {}

def attempt(name, path, format="binary", artifact=second):
    try:
        artifact.save(path=str(path), format=format)
        seen[name] = "saved"
    except Exception as error:
        seen[name] = f"{type(error).__name__}: {error}"

attempt("new file", folder / "new")
assert (folder / "new").read_bytes() == other
attempt("again", folder / "new", artifact=first)
assert (folder / "new").read_bytes() == one
new = stat.S_IMODE((folder / "new").stat().st_mode)
seen["mode of a new file"] = oct(new)
(folder / "new").chmod(0o660)
attempt("a file with another mode", folder / "new")
seen["its mode afterwards"] = oct(stat.S_IMODE((folder / "new").stat().st_mode))
(folder / "link").symlink_to("elsewhere")
attempt("a link", folder / "link")
seen["what it is then"] = [(folder / "link").is_symlink(), (folder / "elsewhere").exists()]
(folder / "folder").mkdir()
attempt("a folder", folder / "folder")
attempt("in no folder", folder / "none" / "file")
attempt("a relative name", "relative")
attempt("longest name", folder / ("n" * 255))
os.mkfifo(folder / "pipe")
got = []
reader = threading.Thread(target=lambda: got.append((folder / "pipe").read_bytes()), daemon=True)
reader.start()
attempt("a pipe", folder / "pipe")
reader.join(30)
seen["what came through"] = got == [other]
seen["what it is now"] = stat.S_ISFIFO((folder / "pipe").stat().st_mode)
attempt("unpacked", folder / "unpacked", "unpacked")
loaded = CompiledArtifact.load(path=str(folder / "unpacked"), format="unpacked")
assert torch.equal(loaded(x)[0], x @ x @ x)
attempt("no such format", folder / "file", "other")
attempt("nothing to save", folder / "file", artifact=CompiledArtifact.load(path=str(folder / "elsewhere")))
seen["files"] = sorted(path.name for path in folder.iterdir())
print(json.dumps(seen))
"""
)


def test_reader_and_failed_save_find_a_whole_artifact_unlike_without_the_fix(python):
    names = "read while it was saved", "after a save that failed"
    assert json.loads(check(python(TEAR))) == dict.fromkeys(names, "whole")
    plain = json.loads(check(python(TEAR, TORCH_FORWARDFIX="0")))
    assert plain == dict.fromkeys(names, "torn" if IN_RANGE else "whole")


def test_processes_that_save_at_once_never_show_a_third_a_torn_file(python):
    assert check(python(SAVE_IN_PROCESSES)) == "0\n"


def test_everything_else_about_saving_stays(python):
    if IN_RANGE:
        patched, plain = (json.loads(check(python(KEEP, TORCH_FORWARDFIX=value))) for value in ("1", "0"))
        assert patched == plain
        assert patched["what came through"]
        assert patched["what it is then"] == [True, True]
    program = """
    import torch._inductor
    print(hasattr(torch._inductor.CompiledArtifact.save, "__wrapped__"))
    """
    assert check(python(program)) == f"{IN_RANGE}\n"
