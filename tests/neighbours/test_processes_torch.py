"""Whoever starts processes around a real torch: each of them has the fixes, and says so itself."""

import functools
import json

import pytest

row = functools.partial(pytest.mark.row, "Processes")

# In range on torch 2.9 to 2.11, and in a module that torch._dynamo loads.
FIX = "class-attr-guard"

# What runs in each process; a worker can import it, wherever it was started.
ASKER = f"""
import os
def ask(_=None):
    import torch._dynamo, torch_forwardfix
    return [os.getpid(), next(row.state for row in torch_forwardfix.status() if row.id == {FIX!r})]
"""


@pytest.fixture(scope="session")
def crowd(torch_venv):
    torch_venv.uv("install", "ray", "ipykernel", "jupyter_client")
    (torch_venv.site / "asker.py").write_text(ASKER)
    return torch_venv


def check(crowd, tmp_path, program, *, processes, start=(), **variables):
    """Run a program whose last line lists what the processes answered; those are so many, and not the program's."""
    file = tmp_path / "program.py"
    file.write_text(program)
    variables = {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"), **variables}
    done = crowd.run(*start, file, cwd=tmp_path, **variables)
    parent, *answers = json.loads(done.stdout.splitlines()[-1])
    assert {state for _, state in answers} == {"applied"}, done.stdout + done.stderr
    pids = {pid for pid, _ in answers}
    assert len(pids) == processes
    assert parent not in pids


@row("`torchrun` with two gloo ranks: each has the fixes")
def test_torchrun(crowd, tmp_path):
    program = """
import json, os, torch.distributed as dist
from asker import ask
dist.init_process_group("gloo")
answers = [None, None]
dist.all_gather_object(answers, ask())
if dist.get_rank() == 0:
    print(json.dumps([os.getppid(), *answers]))
dist.destroy_process_group()
"""
    start = ("-m", "torch.distributed.run", "--nnodes=1", "--nproc-per-node=2", "--rdzv-backend=c10d")
    check(crowd, tmp_path, program, processes=2, start=(*start, "--rdzv-endpoint=127.0.0.1:0"))


@row("`DataLoader` with two workers, {method}: each has the fixes")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_data_loader(crowd, tmp_path, method):
    program = f"""
import json, os
from torch.utils.data import DataLoader
from asker import ask
class Answers(list):
    def __getitem__(self, i): return ask()
if __name__ == "__main__":
    loader = DataLoader(Answers([0, 1]), num_workers=2, multiprocessing_context={method!r}, collate_fn=list)
    print(json.dumps([os.getpid(), *(answer for batch in loader for answer in batch)]))
"""
    check(crowd, tmp_path, program, processes=2)


@row("`torch.multiprocessing.spawn`: each process has the fixes")
def test_torch_multiprocessing(crowd, tmp_path):
    program = """
import json, os
import torch.multiprocessing as multiprocessing
from asker import ask
def work(rank, queue): queue.put(ask())
if __name__ == "__main__":
    queue = multiprocessing.get_context("spawn").SimpleQueue()
    multiprocessing.spawn(work, args=(queue,), nprocs=2)
    print(json.dumps([os.getpid(), queue.get(), queue.get()]))
"""
    check(crowd, tmp_path, program, processes=2)


@row("compile workers of inductor, {method}: they have the fixes")
@pytest.mark.parametrize("method", ["subprocess", "fork", "spawn"])
def test_compile_workers(crowd, tmp_path, method):
    program = """
import json, os
from torch._inductor.async_compile import AsyncCompile, shutdown_compile_workers
from asker import ask
if __name__ == "__main__":
    answer = AsyncCompile.process_pool().submit(ask).result()
    print(json.dumps([os.getpid(), answer]))
    shutdown_compile_workers()
"""
    threads = {"TORCHINDUCTOR_WORKER_START": method, "TORCHINDUCTOR_COMPILE_THREADS": "2"}
    check(crowd, tmp_path, program, processes=1, **threads)


@row("a Ray actor: has the fixes")
def test_ray_actor(crowd, tmp_path):
    program = """
import json, os, ray
@ray.remote
class Actor:
    def ask(self):
        import asker
        return asker.ask()
ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
answer = ray.get(Actor.remote().ask.remote(), timeout=300)
ray.shutdown()
print(json.dumps([os.getpid(), answer]))
"""
    check(crowd, tmp_path, program, processes=1, RAY_USAGE_STATS_ENABLED="0")


@row("a Jupyter kernel: has the fixes")
def test_jupyter_kernel(crowd, tmp_path):
    program = """
import json, os
from jupyter_client.manager import start_new_kernel
manager, client = start_new_kernel(startup_timeout=300)
try:
    said = []
    code = "import asker, json; print(json.dumps(asker.ask()))"
    hear = lambda message: said.append(message["content"].get("text", ""))
    client.execute_interactive(code, timeout=300, output_hook=hear)
finally:
    client.stop_channels()
    manager.shutdown_kernel(now=True)
print(json.dumps([os.getpid(), json.loads("".join(said))]))
"""
    check(crowd, tmp_path, program, processes=1, JUPYTER_RUNTIME_DIR=str(tmp_path), IPYTHONDIR=str(tmp_path))
