"""What inductor writes for a GPU, on a machine that has none: kernels are generated for a pretended H100 and never run.

Dynamo and AOTAutograd trace the program on the CPU: autograd's engine, and tensors made from numbers, need a driver.
From inductor's passes over the joint graph on it is on ``cuda:0``, and torch is told of the properties of an H100 and
that triton is there. All that decides is torch's own. Compilation ends where the text would be loaded: it takes neither
a GPU, nor triton, nor a C++ compiler. What differs from an H100 is what decompositions make of the device, as in
``scaled_dot_product_attention``, and what would be measured, as for templates and padding.

One day torch will ask for something that is not pretended here. So everything that is replaced has to be there, and
what comes out has to be kernels for that H100; else :class:`NotGenerated` is raised. It takes a process of its own:
torch remembers what it was told.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

_DEVICE = "cuda:0"
_way = "cpu"

H100 = SimpleNamespace(
    name="NVIDIA H100 80GB HBM3",
    major=9,
    minor=0,
    multi_processor_count=132,
    total_memory=80 * 1024**3,
    regs_per_multiprocessor=65536,
    max_threads_per_multi_processor=2048,
    max_threads_per_block=1024,
    warp_size=32,
    shared_memory_per_block=49152,
    shared_memory_per_block_optin=232448,
    shared_memory_per_multiprocessor=233472,
    L2_cache_size=50 * 1024**2,
    gcnArchName="",
)


class NotGenerated(RuntimeError):
    """No kernels for the pretended GPU came out, or torch is not what the pretence was written for."""


class _Ended(Exception):
    """Compilation is over, and nothing is to be run."""


@dataclass(frozen=True)
class Kernel:
    """One kernel of the forward graph, or of the backward graph.

    ``source`` is the text that triton would compile; ``kind`` is the heuristic that decorates it, such as
    ``pointwise``, ``reduction``, ``persistent_reduction``, ``foreach``.
    """

    name: str
    kind: str
    source: str
    backward: bool

    def calls(self, function: str) -> list[list[str]]:
        """The arguments of every call of ``function``, such as ``tl.atomic_add``, as texts, in the order of the text.

        Those passed by name are ``name=value``.
        """
        found = [
            node
            for node in ast.walk(ast.parse(self.source))
            if isinstance(node, ast.Call) and ast.unparse(node.func) == function
        ]
        found.sort(key=lambda call: (call.lineno, call.col_offset))
        return [[ast.unparse(argument) for argument in (*call.args, *call.keywords)] for call in found]


@dataclass(frozen=True)
class Generated:
    """The kernels in their order, and the whole text of each graph: forward, then backward where it was asked for."""

    kernels: tuple[Kernel, ...]
    wrappers: tuple[str, ...]


def gpu() -> str | None:
    """The name of the GPU that programs can be run on here, or None where kernels can only be generated."""
    import torch

    global _way
    if not torch.cuda.is_available():
        return None
    name = str(torch.cuda.get_device_name(0))
    _way = f"gpu {name}"
    return name


def way() -> str:
    """What this process has rested on: ``gpu NAME`` once :func:`gpu` gave a name, ``generated``, or else ``cpu``."""
    return _way


def generate(
    function: Callable[..., Any],
    *inputs: Any,
    dynamic: bool | None = None,
    options: Mapping[str, Any] | None = None,
    backward: bool = False,
) -> Generated:
    """Return what ``torch.compile(function, dynamic=dynamic, options=options)(*inputs)`` writes for an H100.

    ``inputs`` are on the CPU; what counts of them are shapes, strides, types and ``requires_grad``. ``function`` may be
    a module; tensors that it makes are taken to be on the GPU. With ``backward`` the backward graph is generated too.
    A graph break is an error.

    Errors of torch propagate as a user would see them. Raises :class:`NotGenerated` where there are no kernels to look
    at, or not those for the pretended GPU, and where a real GPU is present.
    """
    import torch
    import torch._inductor.compile_fx as compile_fx
    from torch._inductor.fx_passes import joint_graph

    global _way
    _way = "generated"
    if torch.cuda.is_available():
        raise NotGenerated(f"there is a real GPU here, {gpu()}: run the program, or hide it by CUDA_VISIBLE_DEVICES=")
    texts: dict[bool, list[str]] = {False: [], True: []}
    ended: list[NotGenerated | None] = []

    def inductor(graph: Any, examples: Any) -> Any:
        if _bindings_fail():
            joint_graph.lazy_init()
        try:
            with _pretended(texts, backward):
                compile_fx.compile_fx(graph, examples, _compile_moved, dict(options or {}))
            ended.append(None)
        except NotGenerated as error:
            ended.append(error)
        raise _Ended

    torch._dynamo.reset()
    try:
        torch.compile(function, backend=inductor, fullgraph=True, dynamic=dynamic)(*inputs)
    except Exception:
        if not ended:
            raise
    finally:
        torch._dynamo.reset()
    if not ended:
        raise NotGenerated("the function was not compiled at all")
    if ended[0]:
        raise ended[0]
    wrappers = []
    for wanted in (False, True) if backward else (False,):
        if len(texts[wanted]) != 1:
            raise NotGenerated(f"{len(texts[wanted])} {'backward' if wanted else 'forward'} graphs were written, not 1")
        wrappers += texts[wanted]
    kernels = tuple(kernel for number, text in enumerate(wrappers) for kernel in _kernels(text, bool(number)))
    if not kernels:
        raise NotGenerated("no kernel was written")
    return Generated(kernels, tuple(wrappers))


def _bindings_fail() -> bool:
    """Whether bindings of this torch (2.9, and builds for the CPU alone) fail on fake tensors of a GPU."""
    import torch

    return not (hasattr(torch._C, "_ensureCUDADeviceGuardSet") and torch.backends.cuda.is_built())


def _move(graph_module: Any) -> None:
    """Put a graph that was traced on the CPU onto the GPU, in place."""
    import torch
    from torch.fx.node import map_aggregate

    def moved(value: Any) -> Any:
        return torch.device(_DEVICE) if value == torch.device("cpu") else value

    for module in graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            _move_fakes(node.meta.get("val"))
            node.args = map_aggregate(node.args, moved)
            node.kwargs = map_aggregate(node.kwargs, moved)


def _move_fakes(values: Any) -> None:
    import torch
    from torch._subclasses.fake_tensor import FakeTensor
    from torch.utils._pytree import tree_leaves

    for value in tree_leaves(values):
        if isinstance(value, FakeTensor):
            value.fake_device = torch.device(_DEVICE)
            if not value.is_cuda:
                raise NotGenerated("fake tensors do not move when their fake_device is set")


def _compile_moved(graph_module: Any, inputs: Any, **rest: Any) -> Any:
    import torch._inductor.compile_fx as compile_fx

    _move(graph_module)
    _move_fakes(inputs)
    return compile_fx.compile_fx_inner(graph_module, inputs, **rest)


@contextmanager
def _pretended(texts: dict[bool, list[str]], backward: bool) -> Iterator[None]:
    """Torch sees an H100. What would be loaded is added to ``texts``, under whether it is the backward graph."""
    import torch
    import torch._functorch.config
    import torch._inductor.codegen.triton
    import torch._inductor.compile_fx as compile_fx
    from torch._dynamo import device_interface
    from torch._functorch._aot_autograd.schemas import AOTConfig
    from torch._inductor.codecache import PyCodeCache
    from torch._inductor.constant_folding import ConstantFolder
    from torch._inductor.virtualized import V
    from torch._subclasses import fake_tensor
    from torch.utils import _triton

    def load(key: str, path: str, *rest: Any, **named: Any) -> Any:
        with open(path, encoding="utf-8") as file:
            texts[bool(V.graph.is_backward)].append(file.read())

        def call(*inputs: Any) -> Any:
            raise NotGenerated("what was generated has been run")

        return SimpleNamespace(call=call, __file__=path, key=key)

    def compile_backward_at_once(config: Any) -> None:
        if not hasattr(config, "force_non_lazy_backward_lowering"):
            raise NotGenerated("AOTConfig.force_non_lazy_backward_lowering is gone")
        object.__setattr__(config, "force_non_lazy_backward_lowering", True)  # it is frozen from 2.15 on

    from unittest import mock  # it loads asyncio: `status` would take 45 ms more

    with ExitStack() as stack:

        def get(owner: Any, name: str) -> Any:
            if name not in vars(owner):
                raise NotGenerated(f"{owner.__name__}.{name} is gone")
            return getattr(owner, name)

        def put(owner: Any, name: str, value: Any) -> None:
            get(owner, name)
            stack.enter_context(mock.patch.object(owner, name, value))

        def put_everywhere(owner: Any, name: str, value: Any) -> None:
            original = get(owner, name)
            for module in [module for found, module in sys.modules.items() if found.startswith("torch.")]:
                for bound in [bound for bound, held in list(vars(module).items()) if held is original]:
                    put(module, bound, value)

        cuda: Any = torch.cuda
        put(cuda, "is_available", lambda: True)
        put(cuda, "device_count", lambda: 1)
        put(cuda, "current_device", lambda: 0)
        put(cuda, "get_device_properties", lambda device=None: H100)
        put(cuda, "get_device_capability", lambda device=None: (H100.major, H100.minor))
        put(cuda, "get_device_name", lambda device=None: H100.name)
        put(cuda, "mem_get_info", lambda device=None: (H100.total_memory, H100.total_memory))
        put(cuda, "get_rng_state", lambda device=None: torch.empty(16, dtype=torch.uint8))
        put(cuda, "set_rng_state", lambda state, device=None: None)
        put(cuda, "_exchange_device", lambda device: 0)
        put(cuda, "_maybe_exchange_device", lambda device: 0)
        interface = get(device_interface, "CudaInterface")
        for name in ("current_device", "device_count", "get_device_properties"):
            put(interface, name, staticmethod(getattr(cuda, name)))
        put(device_interface, "caching_worker_device_properties", {"cuda": [H100]})
        put(device_interface, "caching_worker_current_devices", {"cuda": 0})

        put(fake_tensor, "init_gpu_context", lambda device: None)
        put(fake_tensor.FakeTensorMode, "avoid_device_init", property(lambda mode: True))
        if _bindings_fail():
            stack.enter_context(mock.patch.object(fake_tensor.FakeTensor, "__getitem__", _getitem))
        put(ConstantFolder, "run", _folding_on_cpu(get(ConstantFolder, "run")))

        joint_passes = get(compile_fx, "_recursive_joint_graph_passes")

        def joint_passes_on_gpu(graph_module: Any, *rest: Any, **named: Any) -> Any:
            _move(graph_module)
            if "input_device" in named:
                named["input_device"] = torch.device(_DEVICE)
            return joint_passes(graph_module, *rest, **named)

        put(compile_fx, "_recursive_joint_graph_passes", joint_passes_on_gpu)
        if backward:
            put(AOTConfig, "__post_init__", compile_backward_at_once)

        put_everywhere(_triton, "has_triton", lambda **named: True)
        put_everywhere(_triton, "triton_hash_with_backend", lambda: "pretended")
        put(PyCodeCache, "load_by_key_path", load)
        # For what a checkpoint computes again, the driver would be asked for a generator of random numbers.
        traced = {"enable_autograd_cache": False, "graphsafe_rng_functionalization": False}
        stack.enter_context(torch._functorch.config.patch(traced))
        # Padding is decided by measuring on the GPU.
        settings: dict[str, Any] = {"fx_graph_cache": False, "fx_graph_remote_cache": False, "shape_padding": False}
        settings |= {"cpp_wrapper": False, "compile_threads": 1}
        stack.enter_context(torch._inductor.config.patch(settings))
        yield


def _getitem(self: Any, key: Any) -> Any:
    """``x[key]`` of a fake tensor past the binding that asks for a driver, where ``key`` holds no tensor."""
    import torch

    keys = key if isinstance(key, tuple) else (key,)
    numbers = (int, torch.SymInt)
    if not all(each is None or each is ... or type(each) in (*numbers, slice) for each in keys):
        return torch.Tensor.__getitem__(self, key)
    result, dim = self, 0
    for each in keys:
        if each is None:
            result, dim = result.unsqueeze(dim), dim + 1
        elif each is ...:
            dim += self.dim() - sum(type(other) in (*numbers, slice) for other in keys)
        elif isinstance(each, slice):
            if each != slice(None):
                step = 1 if each.step is None else each.step
                result = torch.ops.aten.slice.Tensor(result, dim, each.start, each.stop, step)
            dim += 1
        else:
            result = result.select(dim, each)
    return result


def _folding_on_cpu(run: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Constants are folded by running operations; those that make tensors make them on the CPU."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class OnCpu(TorchDispatchMode):  # type: ignore[misc, unused-ignore]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = dict(kwargs or {})
            if kwargs.get("device") is not None:
                kwargs["device"] = "cpu"
            return func(*args, **kwargs)

    def run_on_cpu(self: Any) -> Any:
        with OnCpu():
            return run(self)

    return run_on_cpu


def _kernels(wrapper: str, backward: bool) -> Iterator[Kernel]:
    """The kernels in the text of a graph. Raises :class:`NotGenerated` for those that are not for the pretended GPU."""
    for node in ast.walk(ast.parse(wrapper)):
        if not (isinstance(node, ast.Call) and ast.unparse(node.func).startswith("async_compile.")):
            continue
        language = ast.unparse(node.func).removeprefix("async_compile.")
        if language in ("wait", "multi_kernel"):
            continue
        if language != "triton":
            raise NotGenerated(f"a kernel was written for async_compile.{language}, not for triton")
        name, source = (ast.literal_eval(argument) for argument in node.args[:2])
        for wanted in ("type='cuda'", f"multi_processor_count={H100.multi_processor_count}", "cc=90"):
            if wanted not in source:
                raise NotGenerated(f"{name} is not written for the pretended GPU: it says nowhere {wanted}")
        yield Kernel(name, _kind(source), source, backward)


def _kind(source: str) -> str:
    for node in ast.walk(ast.parse(source)):
        for decorator in getattr(node, "decorator_list", ()):
            called = ast.unparse(decorator).partition("(")[0]
            if called.startswith("triton_heuristics."):
                return called.removeprefix("triton_heuristics.")
    raise NotGenerated("a kernel is decorated by no heuristic")
