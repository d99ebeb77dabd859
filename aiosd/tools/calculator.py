"""Arithmetic on text, without eval: Python's own parser reads it, and only what stands in this file is computed.

Whole numbers are exact up to `MAX_BITS`. Nothing here can take long, whatever is asked.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable

Number = int | float

MAX_LENGTH = 1000
"""Characters of an expression; a longer one is no sum that a person wrote."""
MAX_BITS = 10_000
"""Of a whole number: some 3,000 digits, which is below what Python turns into text (4,300)."""

CONSTANTS: dict[str, Number] = {"pi": math.pi, "e": math.e}


def calculate(expression: str) -> str:
    """The value: `84` for a whole number, else 15 digits, so that 0.1 + 0.2 is `0.3`.

    Raises ValueError with a sentence; ZeroDivisionError and OverflowError say what they are.
    """
    if len(expression) > MAX_LENGTH:
        raise ValueError(f"the expression has {len(expression)} characters; at most {MAX_LENGTH}")
    try:
        tree = ast.parse(expression.strip(), mode="eval")
        value = _value(tree.body)
    except SyntaxError as exc:
        raise ValueError(f"`{expression}` is not an expression: {exc.msg}") from None
    except (RecursionError, MemoryError):
        raise ValueError("the expression is nested too deeply") from None
    return _text(value)


def _text(value: Number) -> str:
    if isinstance(value, int) or (value.is_integer() and abs(value) < 1e15):
        return str(int(value))
    return format(value, ".15g")


def _value(node: ast.expr) -> Number:
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            return _checked(value)
        case ast.Name(id=name) if name in CONSTANTS:
            return CONSTANTS[name]
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _value(operand)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
            return _checked(OPERATORS[type(op)](_value(left), _value(right)))
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in FUNCTIONS:
            return _checked(_call(name, [_value(argument) for argument in arguments]))
        case ast.BinOp(op=ast.BitXor()):
            raise ValueError("`^` is not known here; a power is `**`")
        case ast.Name(id=name):
            raise ValueError(f"`{name}` is not known; there are {', '.join([*CONSTANTS, *FUNCTIONS])}")
        case _:
            raise ValueError(
                f"`{ast.unparse(node)}` is not arithmetic: numbers, + - * / // % **, parentheses, "
                f"{', '.join([*CONSTANTS, *FUNCTIONS])}"
            )


def _checked(value: Number) -> Number:
    if isinstance(value, int):
        if value.bit_length() > MAX_BITS:
            raise OverflowError(f"the number passes {MAX_BITS} bits")
    elif not math.isfinite(value):
        raise OverflowError("the number is too large")
    return value


def _divide(a: Number, b: Number) -> Number:
    if isinstance(a, int) and isinstance(b, int) and b and a % b == 0:
        return a // b
    return a / b


def _power(a: Number, b: Number) -> Number:
    """Decides before it computes whether the result has a size that one can compute."""
    if isinstance(a, int) and isinstance(b, int) and b >= 0 and abs(a) > 1:
        if (abs(a).bit_length() - 1) * b > MAX_BITS:
            raise OverflowError(f"`{_short(a)} ** {_short(b)}` passes {MAX_BITS} bits")
        return int(a**b)
    if a < 0 and not float(b).is_integer():
        raise ValueError(f"`{_short(a)} ** {_short(b)}` is not a real number")
    if abs(a) == 1 or (a == 0 and b > 0):
        return abs(a) if a >= 0 or b % 2 == 0 else a
    if a == 0 and b < 0:
        raise ZeroDivisionError(f"`0 ** {_short(b)}` divides by zero")
    try:
        return math.pow(a, b)
    except OverflowError:
        raise OverflowError("the number is too large") from None


def _short(value: Number) -> str:
    text = _text(value)
    return text if len(text) <= 20 else f"{text[:17]}..."


def _root(value: Number) -> Number:
    if value < 0:
        raise ValueError(f"the square root of {_short(value)} is not a real number")
    if isinstance(value, int) and (root := math.isqrt(value)) ** 2 == value:
        return root
    return math.sqrt(value)


def _round(value: Number, digits: Number = 0) -> Number:
    if not isinstance(digits, int) or abs(digits) > 400:
        raise ValueError("round takes a whole number of digits, at most 400")
    return round(value, digits) if digits else round(value)


def _call(name: str, arguments: list[Number]) -> Number:
    function, fewest, most = FUNCTIONS[name]
    if not fewest <= len(arguments) <= most:
        raise ValueError(f"`{name}` does not take {len(arguments)} arguments")
    return function(*arguments)


OPERATORS: dict[type[ast.operator], Callable[[Number, Number], Number]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: _divide,
    ast.FloorDiv: lambda a, b: a // b,
    ast.Mod: lambda a, b: a % b,
    ast.Pow: _power,
}

FUNCTIONS: dict[str, tuple[Callable[..., Number], int, int]] = {
    "sqrt": (_root, 1, 1),
    "abs": (abs, 1, 1),
    "round": (_round, 1, 2),
    "min": (lambda *values: min(values), 1, MAX_LENGTH),
    "max": (lambda *values: max(values), 1, MAX_LENGTH),
}
"""Each with the fewest and the most arguments it takes."""
