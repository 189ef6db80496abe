"""Classes that join a mixin with whatever class a config names."""

from __future__ import annotations

from typing import Any

_CLASSES: dict[tuple[type, type], type] = {}


def derived_class(mixin: type, base: type, prefix: str, doc: str) -> type:
    """The class of a mixin and a base, made once; its objects can be pickled.

    Args:
        mixin: Comes first.
        base: Any class.
        prefix: Put before the name of ``base``.
        doc: Docstring of the class.
    """
    if (mixin, base) not in _CLASSES:
        attributes = dict(
            __doc__=doc, __module__=mixin.__module__, __reduce_ex__=_reduce
        )
        name = f'{prefix}{base.__name__}'
        _CLASSES[mixin, base] = type(name, (mixin, base), attributes)
    return _CLASSES[mixin, base]


def _reduce(self: Any, protocol: Any) -> tuple:
    """No module has a name for such a class, so a pickle makes it anew."""
    kind = type(self)
    mixin, base = kind.__bases__
    prefix = kind.__name__.removesuffix(base.__name__)
    return _empty, (mixin, base, prefix, kind.__doc__), self.__dict__.copy()


def _empty(*made_of: Any) -> Any:
    """An object that a pickle is put into."""
    kind: Any = derived_class(*made_of)
    return kind.__new__(kind)
