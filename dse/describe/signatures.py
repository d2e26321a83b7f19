"""The signature of an RPC method, read back from the text that the catalogue carries. Nothing in it is ever run."""

from __future__ import annotations

import ast
import keyword
from dataclasses import dataclass
from functools import lru_cache

from dse.errors import ConfigError

__all__ = ["Parameter", "Signature"]

_LONGEST = 10_000  # characters of a signature: a peer may say anything


@dataclass(frozen=True, slots=True)
class Parameter:
    """One argument. `annotation` is text, or None; `default` too, and None says that it must be given."""

    name: str
    annotation: str | None = None
    default: str | None = None

    @property
    def required(self) -> bool:
        """Whether a call must give it."""
        return self.default is None


@dataclass(frozen=True, slots=True)
class Signature:
    """The arguments of a method, all by name, and the annotation of its result."""

    parameters: tuple[Parameter, ...] = ()
    returns: str | None = None

    @classmethod
    def parse(cls, text: str) -> Signature:
        """Read ``(pid: int, force: bool = False) -> bool``; raise `ConfigError` for what is no signature."""
        return _parse(text)


@lru_cache(maxsize=1000)
def _parse(text: str) -> Signature:
    shown = ascii(text if len(text) <= 200 else text[:200] + "…")
    if len(text) > _LONGEST:
        raise ConfigError(f"a signature of {len(text):,} characters is too long: {shown}")
    try:
        (function,) = ast.parse(f"def _{text}: ...").body
        if (
            not isinstance(function, ast.FunctionDef)
            or len(function.body) != 1
            or ast.unparse(function.body[0]) != "..."
        ):
            raise ValueError  # the text went on after the signature
        if function.args.vararg or function.args.kwarg or function.args.posonlyargs:
            raise ValueError
        parameters = [*_positional(function.args), *_by_name(function.args)]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        # A default may be shown as something that is no Python (``<object object at 0x7f…>``).
        raise ConfigError(f"not a method's signature: {shown}") from None
    return Signature(tuple(parameters), ast.unparse(function.returns) if function.returns is not None else None)


def _positional(args: ast.arguments) -> list[Parameter]:
    missing = len(args.args) - len(args.defaults)
    defaults = [*[None] * missing, *args.defaults]
    return [_parameter(arg, default) for arg, default in zip(args.args, defaults, strict=True)]


def _by_name(args: ast.arguments) -> list[Parameter]:
    return [_parameter(arg, default) for arg, default in zip(args.kwonlyargs, args.kw_defaults, strict=True)]


def _parameter(arg: ast.arg, default: ast.expr | None) -> Parameter:
    if keyword.iskeyword(arg.arg):
        raise ValueError
    return Parameter(
        arg.arg,
        ast.unparse(arg.annotation) if arg.annotation is not None else None,
        ast.unparse(default) if default is not None else None,
    )
