"""``copy.deepcopy`` ends a compile with ``fullgraph=True``: "Unsupported: copy.deepcopy()".

Models that copy a configuration object while they run have it, every T5 and Whisper of transformers 4.57 to 5.23 among
them: their key-value caches ask the configuration for its decoder's part, which is a copy. Dynamo cut the graph at the
call, whatever was copied, and ``fullgraph=True`` makes an error of that.

Since 2.12 dynamo traces the standard library's function through ``__reduce_ex__``, so that whatever the copy reads is
guarded (pytorch#177484, #179611). Tensors within what is copied are still refused there.
"""

from __future__ import annotations

from torch_forwardfix.fix import BugPresent, Unfixed


def reproduce() -> None:
    import copy

    import torch
    from torch._dynamo.exc import Unsupported

    class Config:
        def __init__(self) -> None:
            self.layers = 2
            self.decoder = {"scales": [3.0, 5.0]}

    def scale(x: torch.Tensor, config: Config) -> torch.Tensor:
        own = copy.deepcopy(config)
        own.decoder["scales"][0] = 7.0
        return x * own.layers * own.decoder["scales"][0] + config.decoder["scales"][0]

    x, config = torch.ones(2), Config()
    compiled = torch.compile(scale, backend="eager", fullgraph=True)
    try:
        results = [compiled(x, config)]
        config.layers = 4
        results.append(compiled(x, config))
    except Unsupported as error:
        if "copy.deepcopy()" in str(error):
            raise BugPresent(f"fullgraph=True: {str(error).splitlines()[0]} is not supported") from error
        raise
    if [result.tolist() for result in results] != [[17.0] * 2, [31.0] * 2]:
        raise BugPresent(f"results are {results}, in eager 17 and 31")


BUG = Unfixed(
    id="deepcopy-unsupported",
    title="fullgraph=True fails where the model calls copy.deepcopy, as T5 and Whisper of transformers do",
    kind="crash",
    upstream=("pytorch/pytorch#177484", "pytorch/pytorch#179611"),
    affects={"torch": ">=2.9.0.dev0,<2.12.0rc99"},
    fixed_in="2.12.0",
    why="upstream's repair is a large part of the object protocol that dynamo did not know before; a patch that copies "
    "while it traces would burn the copied values into the graph, without a guard on any of them",
    workaround="compile without fullgraph=True (one graph break more), or copy before the compiled function is called",
    reproduce=reproduce,
)
