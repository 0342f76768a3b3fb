"""Check options when a class is built, by the type annotations of its ``__init__``.

Configs are written by hand and not checked by Python: a wrong type would only fail deep in the model.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import math
import types
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np
from mmengine.config import Config, ConfigDict

from ..runtime.errors import UserError

Class = TypeVar('Class', bound=type)
SEQUENCES = (list, tuple, Sequence)


class OptionError(UserError):
    """An option of a config that is unknown or has an invalid value; the message names the class and the option."""


class Range(NamedTuple):
    """Numbers from ``low`` to ``high``, inclusive, as part of an ``Annotated`` type."""

    low: float
    high: float = math.inf

    def __str__(self) -> str:
        return f'{self.low:g} or more' if self.high == math.inf else f'{self.low:g} to {self.high:g}'


AtLeast0 = Annotated[float, Range(0)]
Share = Annotated[float, Range(0, 1)]
Count = Annotated[int, Range(1)]
CountOr0 = Annotated[int, Range(0)]


def to_python(value: Any) -> Any:
    """What a config would say in place of numpy's numbers and arrays, a range, or a Config; all else as it is."""
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    if isinstance(value, Config):
        return value.to_dict()
    if isinstance(value, range):
        return tuple(value)
    if type(value) in (dict, ConfigDict):
        return type(value)((name, to_python(one)) for name, one in value.items())
    return type(value)(map(to_python, value)) if type(value) in (list, tuple) else value


def fits(value: Any, hint: Any) -> bool:
    """Whether a value fits an annotation. A list fits a tuple, a whole number a float."""
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin is Annotated:
        return fits(value, args[0]) and all(low <= value <= high for low, high in hint.__metadata__)
    if origin in (Union, types.UnionType):
        return any(fits(value, arg) for arg in args)
    if origin is Literal:
        return value in args
    if origin in SEQUENCES:
        if not isinstance(value, (list, tuple)):
            return False
        if origin is tuple and args[-1] is not Ellipsis:
            return len(value) == len(args) and all(map(fits, value, args))
        return all(fits(item, args[0]) for item in value)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, origin or hint)


def describe_type(hint: Any) -> str:
    """A type in words, for a message."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return f'{describe_type(args[0])}, {hint.__metadata__[0]}'
    if origin in (Union, types.UnionType):
        return ' or '.join(map(describe_type, args))
    if origin is Literal:
        return ' or '.join(map(repr, args))
    if origin is tuple and args[-1] is not Ellipsis:
        return f'({", ".join(map(describe_type, args))})'
    if origin in SEQUENCES:
        return f'a list of {describe_type(args[0])}'
    words = {int: 'a whole number', float: 'a number', str: 'a text', bool: 'True or False', type(None): 'None'}
    return words.get(hint) or getattr(origin or hint, '__name__', str(hint))


def list_options(cls: type) -> dict[str, tuple[Any, Any]]:
    """Types and defaults of a class's options by name, with those of its bases where it passes ``**kwargs`` on."""
    options: dict[str, tuple[Any, Any]] = {}
    for base in cls.__mro__:
        init = inspect.unwrap(vars(base).get('__init__', object.__init__))
        if init is object.__init__:
            continue
        hints = get_type_hints(init, include_extras=True)
        parameters = list(inspect.signature(init).parameters.values())[1:]
        for parameter in parameters:
            if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                options.setdefault(parameter.name, (hints.get(parameter.name, Any), parameter.default))
        if not any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters):
            break
    return options


def check_options(owner: str, given: dict[str, Any], options: dict[str, tuple[Any, Any]]) -> None:
    """Check options by name.

    Args:
        owner: Name of the class that they belong to, for the message.
        given: Name -> value.
        options: Name -> type and default; ``inspect.Parameter.empty`` if it has none.

    Raises:
        OptionError: One is unknown, missing, or of another type or range.
    """
    for name, value in given.items():
        if name not in options:
            close = difflib.get_close_matches(name, options, 1)
            hint = f'did you mean {close[0]}?' if close else f'it has {", ".join(sorted(options)) or "none"}'
            raise OptionError(f'{owner}: there is no option {name}; {hint}')
        hint, default = options[name]
        if value is not default and not fits(value, hint):
            raise OptionError(f'{owner}: {name} must be {describe_type(hint)}, got {value!r}')
    missing = [name for name, (_, default) in options.items() if default is inspect.Parameter.empty]
    for name in missing:
        if name not in given:
            raise OptionError(f'{owner}: {name} must be set')


def show_options(self: Any) -> str:
    """``Name(option=value, ...)``, as mmcv shows its transforms."""
    options = vars(self).get('_checked_options', {})
    return f'{type(self).__name__}({", ".join(f"{name}={value!r}" for name, value in options.items())})'


def checked_options(cls: Class) -> Class:
    """Class decorator: check all arguments of ``__init__`` by the types in its signature.

    ``repr`` shows them as they were given, and defaults; a ``repr`` of the class's own, as modules have, stays.
    """
    init, options = cls.__init__, list_options(cls)
    if cls.__repr__ is object.__repr__:
        cls.__repr__ = show_options
    is_shown = cls.__repr__ is show_options

    @functools.wraps(init)
    def checked_init(self: Any, *args: Any, **kwargs: Any) -> None:
        args, kwargs = to_python(args), {name: to_python(value) for name, value in kwargs.items()}
        given = {**dict(zip(options, args)), **kwargs}
        check_options(type(self).__name__, given, options)
        init(self, *args, **kwargs)
        if is_shown:
            self._checked_options = {name: given.get(name, default) for name, (_, default) in options.items()}

    cls.__init__ = checked_init
    return cls
