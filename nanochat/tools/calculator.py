"""A calculator for expressions that a model writes: arithmetic and `"text".count("x")`, no `eval`.

Everything is bounded before it is computed: the length of the expression, its depth, the size of
every number. What is outside the bounds or the grammar is refused with None, never with an exception.
"""

import ast
import math
import re

MAX_EXPRESSION_CHARS = 200
MAX_DEPTH = 32
MAX_BITS = 333  # 100 decimal digits

_STRING = re.compile(r""""[^"\\\n]*"|'[^'\\\n]*'""")
_THOUSANDS = re.compile(r"(?<![\d.])\d{1,3}(?:,\d{3})+(?![\d,])")
_ARITHMETIC = re.compile(r"(?:[0-9+\-*/%(). ]|(?<=[0-9.])[eE](?=[0-9+\-])|S\.count\( ?S ?\))*")

Number = int | float


def calculate(expression: str) -> str | None:
    """Evaluate an expression, or refuse it with None.

    >>> calculate("12 * 3"), calculate("0.1 + 0.2"), calculate("1,200 / 4"), calculate("2 ** -1")
    ('36', '0.3', '300', '0.5')
    >>> calculate('"strawberry".count("r")')
    '3'
    >>> calculate("1 / 0") is None and calculate("9 ** 9 ** 9") is None and calculate("__import__('os')") is None
    True
    """
    if len(expression) > MAX_EXPRESSION_CHARS:
        return None
    # Commas go from numbers, not from strings: "a,b".count(",") keeps both of its own.
    strings = _STRING.findall(expression)
    bare = _THOUSANDS.sub(lambda match: match[0].replace(",", ""), _STRING.sub("S", expression)).strip()
    if not bare or bare.count("S") != len(strings) or not _ARITHMETIC.fullmatch(bare):
        return None
    pieces = bare.split("S")
    source = pieces[0] + "".join(string + piece for string, piece in zip(strings, pieces[1:], strict=True))
    try:
        return _format(_evaluate(ast.parse(source, mode="eval").body, MAX_DEPTH))
    except (SyntaxError, ValueError, ArithmeticError, RecursionError, MemoryError):
        return None


def _evaluate(node: ast.expr, depth: int) -> Number:
    """Raises ValueError for anything that is not a bounded number."""
    if depth == 0:
        raise ValueError("too deep")
    match node:
        case ast.Constant(value=int() | float() as value):
            return _bounded(value)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _evaluate(operand, depth - 1)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_evaluate(operand, depth - 1)
        case ast.BinOp(left=left, op=op, right=right):
            return _bounded(_apply(op, _evaluate(left, depth - 1), _evaluate(right, depth - 1)))
        case ast.Call(
            func=ast.Attribute(value=ast.Constant(value=str(text)), attr="count"),
            args=[ast.Constant(value=str(part))],
            keywords=[],
        ):
            return text.count(part)
    raise ValueError(f"{type(node).__name__} is no arithmetic")


def _apply(op: ast.operator, left: Number, right: Number) -> Number:
    match op:
        case ast.Add():
            return left + right
        case ast.Sub():
            return left - right
        case ast.Mult():
            return left * right  # both within MAX_BITS: cheap whatever they are
        case ast.Div():
            return left / right
        case ast.FloorDiv():
            return left // right
        case ast.Mod():
            return left % right
        case ast.Pow():
            if isinstance(left, int) and isinstance(right, int) and right >= 0:
                if left not in (-1, 0, 1) and (left.bit_length() - 1) * right > MAX_BITS:
                    raise ValueError("too large")
                return left**right
            return math.pow(left, right)  # unlike **, never a complex number
    raise ValueError(f"{type(op).__name__} is no arithmetic")


def _bounded(value: Number) -> Number:
    if isinstance(value, int):
        if value.bit_length() > MAX_BITS:
            raise ValueError("too large")
    elif not math.isfinite(value):
        raise ValueError("not finite")
    return value


def _format(value: Number) -> str:
    """2 -> "2", 2.0 -> "2", 0.30000000000000004 -> "0.3", 1e20 -> "1e+20"."""
    if isinstance(value, int):
        return str(value)
    if value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return f"{value:.12g}"
