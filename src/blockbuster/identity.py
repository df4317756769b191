"""What a function is, so that a resumed run can tell whether it is still the same one."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
from dask.base import tokenize
from dask.tokenize import TokenizationError

__all__ = ["function_identity"]

# What a module holds and its functions do not change: lists and dicts may be where they keep their books.
_CONSTANTS = (bool, int, float, complex, str, bytes, tuple, frozenset, np.ndarray, np.generic)


def function_identity(function: Any) -> str:
    """Name and digest of a callable: of its code, its defaults, what it closes over, and its attributes.

    Of its module, the functions that it calls and the constants that it reads count as well; other modules do not.

    Examples
    --------
    >>> function_identity(len) == function_identity(len)
    True
    >>> function_identity(lambda x: x + 1) == function_identity(lambda x: x + 2)
    False
    """
    digest = hashlib.sha256("\0".join(_words(function, set())).encode()).hexdigest()[:16]
    return f"{_name(function)} {digest}"


def _name(function: Any) -> str:
    if isinstance(function, functools.partial):
        return f"partial of {_name(function.func)}"
    owner = function if hasattr(function, "__qualname__") else type(function)
    return f"{getattr(owner, '__module__', None)}.{owner.__qualname__}"


def _words(value: Any, seen: set[int]) -> Iterator[str]:
    """Words that differ where the behaviour of `value` may."""
    if id(value) in seen:
        return
    if isinstance(value, types.FunctionType):
        seen.add(id(value))
        yield from _code_words(value.__code__)
        yield from _global_words(value, seen)
        cells = list(_contents(value.__closure__ or ()))
        for part in [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values(), *cells]:
            yield from _words(part, seen)
    elif isinstance(value, types.MethodType):
        yield from _words(value.__func__, seen)
        yield from _words(value.__self__, seen)
    elif isinstance(value, functools.partial):
        for part in (value.func, *value.args, *(item for pair in sorted(value.keywords.items()) for item in pair)):
            yield from _words(part, seen)
    elif isinstance(value, types.BuiltinFunctionType | type | types.ModuleType):
        yield _name(value) if not isinstance(value, types.ModuleType) else value.__name__
    elif callable(value) and hasattr(value, "__dict__"):
        seen.add(id(value))
        yield _name(value)
        yield from _words(type(value).__call__, seen)
        for key, part in sorted(vars(value).items()):
            yield key
            yield from _words(part, seen)
    else:
        yield _token(value)


def _contents(cells: tuple[types.CellType, ...]) -> Iterator[Any]:
    for cell in cells:
        # A cell is empty until its variable is set.
        with contextlib.suppress(ValueError):
            yield cell.cell_contents


def _token(value: Any) -> str:
    """A digest of a value, or its type where it has none that is the same each time."""
    try:
        return str(tokenize(value, ensure_deterministic=True))
    except TokenizationError:
        return _name(type(value))


def _global_words(function: types.FunctionType, seen: set[int]) -> Iterator[str]:
    """Words for what a function reads of its module: helpers that it calls, and constants."""
    for name in sorted(_names(function.__code__)):
        value = function.__globals__.get(name)
        is_helper = isinstance(value, types.FunctionType) and value.__module__ == function.__module__
        if is_helper or isinstance(value, _CONSTANTS):
            yield name
            yield from _words(value, seen)


def _names(code: types.CodeType) -> set[str]:
    inner = [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return set(code.co_names).union(*map(_names, inner))


def _code_words(code: types.CodeType) -> Iterator[str]:
    yield code.co_code.hex()
    yield repr(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _code_words(constant)
        else:
            yield repr(constant)
