"""Small models with the structure of large ones, compiled piece by piece as vLLM does it; for ``startup``.

A whole forward pass is captured and split at the attention operator. The layers repeat, so most of the pieces between
are the same graph: torch's own cache key says which. A cold start compiles them and saves each kind once, a warm start
loads what was saved. Only the processes that ``startup`` starts import this module, for it imports torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.passes.split_module import split_module
from torch.nn import functional as F

TOKENS, HIDDEN, HEADS, HEAD, INNER, EXPERTS = 8, 32, 4, 8, 64, 4
LAYERS = 6


@torch.library.custom_op("torch_forwardfix_startup::attention", mutates_args=())
def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Causal attention over ``(tokens, heads, size)``."""
    mixed = F.scaled_dot_product_attention(*(x.transpose(0, 1) for x in (query, key, value)), is_causal=True)
    return mixed.transpose(0, 1).contiguous()


@attention.register_fake
def _(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return torch.empty_like(value, memory_format=torch.contiguous_format)


def _linear(inputs: int, outputs: int) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=False)


class _Norm(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * self.weight


def _rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary position embedding of the first ``2 * cosine.shape[-1]`` elements of each head."""
    half = cosine.shape[-1]
    first, second, rest = x.split([half, half, x.shape[-1] - 2 * half], dim=-1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine, rest], dim=-1)


class _Attention(nn.Module):
    """Grouped queries (Llama); with ``norm`` queries and keys are normalised (Qwen3, GLM)."""

    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.query, self.output = _linear(HIDDEN, HEADS * HEAD), _linear(HEADS * HEAD, HIDDEN)
        self.key, self.value = _linear(HIDDEN, HEADS // 2 * HEAD), _linear(HIDDEN, HEADS // 2 * HEAD)
        self.query_norm = _Norm(HEAD) if norm else nn.Identity()
        self.key_norm = _Norm(HEAD) if norm else nn.Identity()

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        query = self.query_norm(self.query(x).view(TOKENS, HEADS, HEAD))
        key = self.key_norm(self.key(x).view(TOKENS, HEADS // 2, HEAD))
        value = self.value(x).view(TOKENS, HEADS // 2, HEAD)
        key, value = key.repeat_interleave(2, dim=1), value.repeat_interleave(2, dim=1)
        mixed: Tensor = attention(_rotate(query, cosine, sine), _rotate(key, cosine, sine), value)
        return self.output(mixed.flatten(1))


class _LatentAttention(nn.Module):
    """DeepSeek's MLA: keys and values come from one small latent vector, and all heads share the rotated part."""

    def __init__(self) -> None:
        super().__init__()
        self.query_down, self.query_norm = _linear(HIDDEN, 16), _Norm(16)
        self.query_up = _linear(16, HEADS * HEAD)
        self.latent, self.latent_norm = _linear(HIDDEN, 16 + HEAD // 2), _Norm(16)
        self.latent_up = _linear(16, HEADS * (HEAD // 2 + HEAD))
        self.output = _linear(HEADS * HEAD, HIDDEN)

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        query = self.query_up(self.query_norm(self.query_down(x))).view(TOKENS, HEADS, HEAD)
        latent, shared = self.latent(x).split([16, HEAD // 2], dim=-1)
        key, value = self.latent_up(self.latent_norm(latent)).view(TOKENS, HEADS, -1).split([HEAD // 2, HEAD], dim=-1)
        shared = _rotate(shared.unsqueeze(1), cosine, sine).expand(-1, HEADS, -1)
        mixed: Tensor = attention(_rotate(query, cosine, sine), torch.cat([shared, key], dim=-1), value)
        return self.output(mixed.flatten(1))


class _Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = _linear(HIDDEN, INNER), _linear(HIDDEN, INNER), _linear(INNER, HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class _Experts(nn.Module):
    """A shared expert and two of the routed ones for each token, chosen by sigmoid scores and a bias.

    With ``groups`` only the better half of the experts' groups is chosen from (DeepSeek).
    """

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.router, self.shared = _linear(HIDDEN, EXPERTS), _Dense()
        self.bias = nn.Parameter(torch.zeros(EXPERTS))
        self.gate_up = nn.Parameter(torch.randn(EXPERTS, HIDDEN, 2 * INNER) / 8)
        self.down = nn.Parameter(torch.randn(EXPERTS, INNER, HIDDEN) / 8)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.router(x).sigmoid()
        choice = scores + self.bias
        if self.groups > 1:
            best = choice.view(TOKENS, self.groups, -1).amax(-1)
            worse = best < best.mean(-1, keepdim=True)
            choice = choice.masked_fill(worse.repeat_interleave(EXPERTS // self.groups, dim=-1), float("-inf"))
        chosen = choice.topk(2, dim=-1).indices
        weights = scores * torch.zeros_like(scores).scatter(-1, chosen, 1.0)
        weights = weights / weights.sum(-1, keepdim=True)
        gate, up = torch.matmul(x, self.gate_up).chunk(2, dim=-1)
        routed = torch.matmul(F.silu(gate) * up, self.down)
        return self.shared(x) + (weights.t().unsqueeze(-1) * routed).sum(0)


class _Layer(nn.Module):
    def __init__(self, attend: nn.Module, think: nn.Module) -> None:
        super().__init__()
        self.before, self.attend, self.between, self.think = _Norm(HIDDEN), attend, _Norm(HIDDEN), think

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        x = x + self.attend(self.before(x), cosine, sine)
        return x + self.think(self.between(x))


class _Model(nn.Module):
    """``rotated`` is the size of the part of each head that positions rotate."""

    def __init__(self, layers: Sequence[nn.Module], rotated: int, vocabulary: int) -> None:
        super().__init__()
        self.embedding, self.layers = nn.Embedding(vocabulary, HIDDEN), nn.ModuleList(layers)
        self.norm, self.head = _Norm(HIDDEN), _linear(HIDDEN, vocabulary)
        angles = torch.arange(TOKENS).view(-1, 1, 1) * 0.1 ** torch.arange(rotated // 2)
        self.register_buffer("cosine", angles.cos())
        self.register_buffer("sine", angles.sin())

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x, self.cosine, self.sine)
        return self.head(self.norm(x))


def _llama() -> _Model:
    return _Model([_Layer(_Attention(norm=False), _Dense()) for _ in range(LAYERS)], HEAD, vocabulary=64)


def _qwen3() -> _Model:
    return _Model([_Layer(_Attention(norm=True), _Dense()) for _ in range(LAYERS)], HEAD, vocabulary=80)


def _deepseek() -> _Model:
    thinkers = [_Dense(), *(_Experts(groups=2) for _ in range(LAYERS - 1))]
    return _Model([_Layer(_LatentAttention(), think) for think in thinkers], HEAD // 2, vocabulary=96)


def _glm() -> _Model:
    thinkers = [_Dense(), *(_Experts(groups=1) for _ in range(LAYERS - 1))]
    return _Model([_Layer(_Attention(norm=True), think) for think in thinkers], HEAD // 2, vocabulary=112)


# No two have the same vocabulary: one model's last piece is not to come from what another one has compiled.
MODELS: dict[str, Callable[[], _Model]] = {"llama": _llama, "qwen3": _qwen3, "deepseek": _deepseek, "glm": _glm}


@dataclass
class Start:
    """What a start did: ``pieces`` lie between the attentions of ``layers``, ``saved`` and ``loaded`` are artifacts."""

    layers: int
    pieces: int = 0
    saved: int = 0
    loaded: int = 0


class _Compiled(nn.Module):
    def __init__(self, artifact: Any, piece: GraphModule) -> None:
        super().__init__()
        self.artifact = artifact
        self.one_output = isinstance(piece.graph.output_node().args[0], Node)

    def forward(self, *inputs: Tensor) -> Any:
        outputs = self.artifact(*inputs)
        # A loaded artifact returns a list where the same one, just compiled, returns a tensor.
        return outputs[0] if self.one_output and not isinstance(outputs, Tensor) else outputs


def start(name: str, folder: Path) -> dict[str, int]:
    """Compile the model ``name`` and run it, with the artifacts that are in ``folder``; new ones are saved there.

    Returns a :class:`Start` as a dictionary. Raises AssertionError where the result is not the eager one.
    """
    torch.manual_seed(0)
    model = MODELS[name]()
    model.eval().requires_grad_(False)
    tokens = torch.randint(model.embedding.num_embeddings, (TOKENS,))
    return run(model, tokens, Start(len(model.layers)), folder)


def run(model: Callable[[Tensor], Tensor], tokens: Tensor, made: Start, folder: Path) -> dict[str, int]:
    """The same for a model that calls :func:`attention` for its attention; what is done is added up in ``made``."""

    def backend(graph: GraphModule, inputs: list[Any]) -> GraphModule:
        return _compile_pieces(graph, folder, made)

    with torch.no_grad():
        compiled = torch.compile(model, backend=backend, fullgraph=True, dynamic=False)(tokens)
        torch.testing.assert_close(compiled, model(tokens), rtol=1e-4, atol=1e-4)
    return asdict(made)


def _compile_pieces(graph: GraphModule, folder: Path, made: Start) -> GraphModule:
    part, parts = 0, {}
    for node in graph.graph.nodes:
        at_attention = node.op == "call_function" and "attention" in str(node.target)
        part += at_attention
        parts[node] = part
        part += at_attention
    split = split_module(graph, None, lambda node: parts[node], keep_original_order=True)
    index = folder / "pieces.json"
    keys = json.loads(index.read_text("utf-8")) if index.exists() else {}
    folder.mkdir(parents=True, exist_ok=True)
    artifacts: dict[str, Any] = {}
    for name, piece in list(split.named_children()):
        if int(name.removeprefix("submod_")) % 2:
            continue
        assert isinstance(piece, GraphModule)
        made.pieces += 1
        if keys.get(name) is None:
            keys[name] = _compile(piece, folder, artifacts, made)
        elif keys[name] not in artifacts:
            artifacts[keys[name]] = torch._inductor.CompiledArtifact.load(path=str(folder / keys[name]))
            made.loaded += 1
        if keys[name] is not None:
            setattr(split, name, _Compiled(artifacts[keys[name]], piece))
    index.write_text(json.dumps(keys), "utf-8")
    return split


def _compile(piece: GraphModule, folder: Path, artifacts: dict[str, Any], made: Start) -> str | None:
    """Compile a piece and return torch's key of it, or None where torch has nothing to save: then it runs eagerly."""
    inputs = [node.meta["example_value"] for node in piece.graph.nodes if node.op == "placeholder"]
    artifact = torch._inductor.standalone_compile(piece, inputs, dynamic_shapes="from_graph")
    keys = artifact._artifacts[1].aot_autograd_artifacts if artifact._artifacts else []
    if len(keys) != 1:
        return None
    key: str = keys[0]
    if key not in artifacts:
        artifacts[key] = artifact
        artifact.save(path=str(folder / key))
        made.saved += 1
    return key
