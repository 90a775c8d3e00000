"""Stands in for SGLang's native kernels on a CPU that has none.

SGLang imports a dozen names from here at module level; plain generation with ``--attention-backend torch_native`` calls
none of them. ``torch.ops.sgl_kernel`` stays empty, which is how SGLang itself sees that the AMX kernels are not there.
"""

from collections.abc import Callable
from typing import NoReturn


def __getattr__(name: str) -> Callable[..., NoReturn]:
    if name.startswith("_"):
        raise AttributeError(name)

    def missing(*_: object, **__: object) -> NoReturn:
        raise NotImplementedError(f"sgl_kernel.{name}: there is no native kernel here")

    missing.__name__ = name
    return missing
