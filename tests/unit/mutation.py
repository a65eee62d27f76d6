"""Copies of a module with one expression changed, for tests that must notice."""

import ast
import inspect
from types import ModuleType


def mutated(module: ModuleType, where: str, right: str, wrong: str) -> ModuleType:
    """Return a copy of a module in which one expression of one function, class or method is another.

    `where` is its name in the module, such as ``"_Rows.bend"``. The expression must be there once, docstrings aside.
    Other classes are the module's own, so that a test finds them in what is returned and raised.
    """
    source = inspect.getsource(module)
    node = ast.parse(source)
    for name in where.split("."):
        (node,) = (each for each in node.body if getattr(each, "name", None) == name)
    lines = source.splitlines(keepends=True)
    before, after = "".join(lines[: node.lineno - 1]), "".join(lines[node.end_lineno :])
    pieces = "".join(lines[node.lineno - 1 : node.end_lineno]).split('"""')  # every second one is a docstring
    count = sum(code.count(right) for code in pieces[::2])
    assert count == 1, f"{right} occurs {count} times in {module.__name__}.{where}"
    pieces[::2] = [code.replace(right, wrong) for code in pieces[::2]]
    copy = ModuleType(module.__name__)
    copy.__package__, copy.__file__ = module.__package__, module.__file__
    exec(before + '"""'.join(pieces) + after, vars(copy))
    vars(copy).update((k, v) for k, v in vars(module).items() if isinstance(v, type) and k != where.split(".")[0])
    return copy
