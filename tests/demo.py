"""A program that torch 2.9 and 2.10 cannot compile: a custom pass whose cache key cannot be pickled."""

import logging

import torch
from torch._inductor.custom_graph_pass import CustomGraphPass

logging.getLogger("torch_forwardfix").setLevel(logging.INFO)
logging.getLogger("torch_forwardfix").addHandler(logging.StreamHandler())
# torch says at length that it goes without its cache, as it does for every key that it cannot make.
logging.getLogger("torch._inductor.codecache").setLevel(logging.ERROR)


class CyclicKey(CustomGraphPass):
    def __call__(self, graph):
        pass

    def uuid(self):
        key = []
        key.append(key)
        return key


def square(x):
    return x @ x


x = torch.arange(9.0).reshape(3, 3)
compiled = torch.compile(square, options={"post_grad_custom_post_pass": CyclicKey()})
try:
    result = compiled(x)
except Exception as error:
    raise SystemExit(f"torch {torch.__version__}: {type(error).__name__}: {str(error).splitlines()[1]}") from None
print(f"torch {torch.__version__}: compiled, same result as eager: {torch.equal(result, square(x))}")
