"""Activation checkpointing, with which the named modules are trained as they are without."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from types import MethodType

from torch import nn
from torch.utils.checkpoint import checkpoint

from ..utils.options import OptionError


def named_modules(model: nn.Module, names: str | Sequence[str] | None) -> list[nn.Module]:
    """Find the modules that ``activation_checkpointing`` of a config names.

    Args:
        model: Also one in a wrapper.
        names: Dotted names, such as ``'backbone'``.

    Raises:
        OptionError: The model has no such module.
    """
    model = getattr(model, 'module', model)
    modules = dict(model.named_modules())
    names = [names] if isinstance(names, str) else list(names or ())
    for name in names:
        if name not in modules:
            parts = ', '.join(name for name, _ in model.named_children())
            raise OptionError(f'activation_checkpointing: the model has no module {name!r}; it has {parts}')
    return [modules[name] for name in names]


def recompute_activations(modules: Sequence[nn.Module]) -> None:
    """Have modules compute their activations anew in the backward pass.

    It replaces what mmengine does for ``activation_checkpointing``: with that form, a module whose inputs need no
    gradient, or are in a tuple, gets none. The statistics of BatchNorm take a batch in once, not again when it is
    computed anew.

    Args:
        modules: Their ``forward`` is replaced.
    """
    for module in modules:
        forward = MethodType(type(module).forward, module)
        module.forward = partial(checkpoint, forward, use_reentrant=False, context_fn=partial(_contexts, module))


def _contexts(module: nn.Module) -> tuple[AbstractContextManager, AbstractContextManager]:
    """For the forward pass, and for computing it anew."""
    return nullcontext(), _copied_buffers(module)


@contextmanager
def _copied_buffers(module: nn.Module) -> Iterator[None]:
    """Let a module change copies of its buffers."""
    owned = [(part, *item) for part in module.modules() for item in part.named_buffers(recurse=False)]
    for part, name, buffer in owned:
        setattr(part, name, buffer.clone())
    try:
        yield
    finally:
        for part, name, buffer in owned:
            setattr(part, name, buffer)
