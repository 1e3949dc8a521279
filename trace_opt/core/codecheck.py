"""The rules that a proposed source must keep, each a reading of its syntax tree: nothing of it is run.

At the top level only what does nothing stands: the function itself, helper functions and plain classes, imports, docstrings
and constants (codeconstant.py). Default values, annotations and decorators run when a function is defined, so they are
bound by a like rule, and those of the function itself by the original's.
"""

from __future__ import annotations

import ast
import builtins
import threading
import warnings
from collections.abc import Iterator
from typing import Any, NoReturn

from trace_opt.core.codeconstant import is_constant, is_literal
from trace_opt.errors import CodeError

FunctionNode = (ast.FunctionDef, ast.AsyncFunctionDef)
_ACTIVE = (ast.Call, ast.Await, ast.Yield, ast.YieldFrom, ast.NamedExpr, ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp,
           ast.GeneratorExp)  # fmt: skip
_lock = threading.Lock()  # warning filters are the process's


def _refuse(name: str, what: str, source: str, line: int | None = None) -> NoReturn:
    lines = source.splitlines()
    where = f" at line {line} (`{lines[line - 1].strip()[:120]}`)" if line and 1 <= line <= len(lines) else ""
    raise CodeError(f"the new {name!r} {what}{where}", source=source, line=line)


def parsed(source: str, name: str) -> ast.Module:
    """The syntax tree of a source.

    Raises:
        CodeError: it does not compile.
    """
    try:
        with _lock, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(source)
    except SyntaxError as error:
        _refuse(name, f"does not compile: {error.msg}", source, error.lineno)
    except (ValueError, RecursionError, MemoryError, OverflowError) as error:
        _refuse(name, f"does not compile: {str(error)[:200] or type(error).__name__}", source)


def compiled(source: str, name: str) -> Any:
    """The code object of a source; some errors are found only here.

    Raises:
        CodeError: it does not compile.
    """
    try:
        with _lock, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return compile(source, f"<generated {name}>", "exec", dont_inherit=True)
    except SyntaxError as error:
        _refuse(name, f"does not compile: {error.msg}", source, error.lineno)
    except (ValueError, RecursionError, MemoryError, OverflowError) as error:
        _refuse(name, f"does not compile: {str(error)[:200] or type(error).__name__}", source)


def only_definition(tree: ast.Module, source: str, name: str) -> Any:
    """The one definition of a function at the top level.

    Raises:
        CodeError: there is none, or the name is bound more than once.
    """
    binding = [node for node in tree.body if name in _bound(node)]
    functions = [node for node in tree.body if isinstance(node, FunctionNode)]
    if not binding:
        other = f", it defines {functions[0].name!r}" if functions else ", it holds no def"
        _refuse(name, f"must define {name!r}{other}; keep the name", source, functions[0].lineno if functions else None)
    if len(binding) > 1 or not isinstance(binding[0], FunctionNode):
        _refuse(
            name, f"must define {name!r} by one def; it binds the name {len(binding)} times", source, binding[-1].lineno
        )
    return binding[0]


def _bound(node: ast.stmt) -> set[str]:
    if isinstance(node, (*FunctionNode, ast.ClassDef)):
        return {node.name}
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return {(alias.asname or alias.name).split(".")[0] for alias in node.names}
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, (ast.Store, ast.Del))}


def no_side_effects(tree: ast.Module, source: str, main: Any, decorators: tuple[str, ...]) -> None:
    """Refuse a source that does something when it is defined.

    Raises:
        CodeError: at the first statement that does.
    """
    allowed = {ast.unparse(ast.parse(text, mode="eval")) for text in decorators}
    for node in tree.body:
        problem = _problem(node)
        if node is main:
            others = [d for d in main.decorator_list if ast.unparse(d) not in allowed]
            problem = "has a decorator of its own" if others else None
        if problem is not None:
            _refuse(
                main.name,
                f"{problem}; only defs, imports and literal constants may stand beside it",
                source,
                node.lineno,
            )
    for node in ast.walk(tree):
        named = _identifier(node)
        if named is not None and named.startswith("_t_"):
            _refuse(
                main.name,
                f"uses the name {named!r}; names that begin with '_t_' are reserved",
                source,
                getattr(node, "lineno", None),
            )


def _identifier(node: ast.AST) -> str | None:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.arg):
        return node.arg
    if isinstance(node, (*FunctionNode, ast.ClassDef)):
        return node.name
    return None


def _problem(node: ast.stmt) -> str | None:
    if isinstance(node, FunctionNode):
        return _function_problem(node)
    if isinstance(node, ast.ClassDef):
        return _class_problem(node)
    if isinstance(node, ast.Import):
        return None
    if isinstance(node, ast.ImportFrom):
        return "imports everything from a module" if any(a.name == "*" for a in node.names) or node.level else None
    if isinstance(node, (ast.Assign, ast.AnnAssign)):
        plain = node.value is None or is_constant(node.value)
        named = all(isinstance(t, ast.Name) for t in (node.targets if isinstance(node, ast.Assign) else [node.target]))
        return None if plain and named else "does something when it is defined"
    if isinstance(node, ast.Pass) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
        return None
    return "does something when it is defined"


def _function_problem(node: Any, *, decorated: bool = False) -> str | None:
    if node.decorator_list and not decorated:
        return f"has a decorator on {node.name!r}"
    defaults = [*node.args.defaults, *(d for d in node.args.kw_defaults if d is not None)]
    if not all(is_literal(default) for default in defaults):
        return f"has a default value in {node.name!r} that is no literal"
    return (
        f"has an annotation in {node.name!r} that does something" if any(map(_is_active, _annotations(node))) else None
    )


def _class_problem(node: ast.ClassDef) -> str | None:
    if node.keywords or any(map(_is_active, node.bases)):
        return f"has a class {node.name!r} with a metaclass or computed bases"
    if any("dataclass" not in ast.unparse(d) or _is_active_call(d) for d in node.decorator_list):
        return f"has a decorator on {node.name!r}"
    for inner in node.body:
        if isinstance(inner, FunctionNode):
            inner_problem = (
                None if all(_is_plain_decorator(d) for d in inner.decorator_list) else "has a decorator in a class"
            )
            inner_problem = inner_problem or _function_problem(inner, decorated=True)
        elif isinstance(inner, ast.AnnAssign) and not _is_active(inner.annotation) and _is_field(inner.value):
            inner_problem = None
        else:
            inner_problem = _problem(inner)
        if inner_problem is not None:
            return inner_problem
    return None


def _is_plain_decorator(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ("property", "staticmethod", "classmethod")


def _is_field(node: ast.expr | None) -> bool:
    """Whether a class attribute's value is a literal or `field(default_factory=list)`."""
    if isinstance(node, ast.Call) and ast.unparse(node.func) in ("field", "dataclasses.field"):
        return not node.args and all(not _is_active(k.value) for k in node.keywords)
    return node is None or is_literal(node)


def _is_active_call(node: ast.expr) -> bool:
    """Whether a decorator is more than `dataclass` or `dataclass(literal=...)`."""
    if isinstance(node, ast.Call):
        return (
            ast.unparse(node.func) not in ("dataclass", "dataclasses.dataclass")
            or bool(node.args)
            or not all(is_literal(k.value) for k in node.keywords)
        )
    return ast.unparse(node) not in ("dataclass", "dataclasses.dataclass")


def _annotations(node: Any) -> Iterator[ast.expr]:
    a = node.args
    for arg in (*a.posonlyargs, *a.args, *a.kwonlyargs, *(x for x in (a.vararg, a.kwarg) if x)):
        if arg.annotation is not None:
            yield arg.annotation
    if node.returns is not None:
        yield node.returns


def _is_active(node: ast.AST) -> bool:
    return any(isinstance(inner, _ACTIVE) for inner in ast.walk(node))


def same_signature(node: Any, source: str, header: str, name: str) -> None:
    """Refuse other parameters, defaults or type hints; hints may be left out.

    Raises:
        CodeError: they differ.
    """
    original: Any = ast.parse(f"{header} pass").body[0]
    if type(node) is not type(original):
        _refuse(
            name,
            f"must stay {'an async def' if isinstance(original, ast.AsyncFunctionDef) else 'a plain def'}",
            source,
            node.lineno,
        )
    if ast.unparse(_bare(node.args)) != ast.unparse(_bare(original.args)):
        _refuse(name, f"must keep its parameters ({ast.unparse(original.args)})", source, node.lineno)
    theirs, ours = _hint_texts(node), _hint_texts(original)
    for parameter, hint in theirs.items():
        if hint != ours.get(parameter):
            kept = ours.get(parameter) or "no type hint"
            _refuse(name, f"must keep the type of {parameter!r}, {kept}, and gives {hint}", source, node.lineno)
    own = [n for n in _own_nodes(node) if isinstance(n, (ast.Yield, ast.YieldFrom))]
    if own:
        _refuse(name, "must not be a generator; return a list", source, own[0].lineno)


def _own_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a function's body without those of functions in it."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, (*FunctionNode, ast.Lambda, ast.ClassDef, ast.GeneratorExp)):
            yield child
            yield from _own_nodes(child)


def _bare(arguments: ast.arguments) -> ast.arguments:
    def without(arg: Any) -> Any:
        return None if arg is None else ast.arg(arg=arg.arg)

    return ast.arguments(
        posonlyargs=[without(a) for a in arguments.posonlyargs], args=[without(a) for a in arguments.args],
        vararg=without(arguments.vararg), kwonlyargs=[without(a) for a in arguments.kwonlyargs],
        kw_defaults=arguments.kw_defaults, kwarg=without(arguments.kwarg), defaults=arguments.defaults,
    )  # fmt: skip


def _hint_texts(node: Any) -> dict[str, str]:
    a = node.args
    args = (*a.posonlyargs, *a.args, *a.kwonlyargs, *(x for x in (a.vararg, a.kwarg) if x))
    texts = {arg.arg: _hint_text(arg.annotation) for arg in args if arg.annotation is not None}
    if node.returns is not None:
        texts["return"] = _hint_text(node.returns)
    return texts


def _hint_text(annotation: ast.expr) -> str:
    """An annotation as text; in quotes it means the same."""
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        return annotation.value
    return ast.unparse(annotation)


def header_of(node: Any, source: str) -> str:
    """The text of a definition from `def` to its colon."""
    start, end = _header_span(node, source)
    return source[start:end]


def _header_span(node: Any, source: str) -> tuple[int, int]:
    """Where the header stands: the colon is the first outside brackets after all that the header holds."""
    lines: list[str] = source.splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))

    def offset(line: int | None, column: int | None) -> int:
        before = lines[(line or 1) - 1].encode()[: column or 0]  # columns count bytes
        return starts[(line or 1) - 1] + len(before.decode())

    begin = offset(node.lineno, node.col_offset)
    first = node.body[0]
    limit = offset(first.lineno, first.col_offset)
    last = max((offset(n.end_lineno, n.end_col_offset) for n in (*_annotations(node), *node.args.defaults,
                *(d for d in node.args.kw_defaults if d is not None), *_arguments(node))), default=begin)  # fmt: skip
    return begin, _colon(source, last, limit)


def _arguments(node: Any) -> list[Any]:
    a = node.args
    return [*a.posonlyargs, *a.args, *a.kwonlyargs, *(x for x in (a.vararg, a.kwarg) if x)]


def _colon(source: str, start: int, limit: int) -> int:
    at = start
    while at < limit:
        if source[at] == "#":
            at = source.find("\n", at)
        elif source[at] == ":":
            return at + 1
        at += 1
    return limit


def restored(node: Any, source: str, header: str, doc: str | None) -> str:
    """A source with the original's header and docstring, and without the decorators of the function."""
    begin, end = _header_span(node, source)
    body = source[end:]
    first = node.body[0]
    if doc is not None:
        body = _with_docstring(node, first, source, body, doc)
    head_line = min([d.lineno for d in node.decorator_list], default=node.lineno)
    before = "".join(source.splitlines(keepends=True)[: head_line - 1])
    return before + header + body if node.col_offset == 0 else source[:begin] + header + body


def _with_docstring(node: Any, first: Any, source: str, body: str, doc: str) -> str:
    if ast.get_docstring(node, clean=False) == doc:
        return body
    own = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    if first.lineno == node.lineno or (own and len(node.body) == 1 and first.end_lineno == node.lineno):
        rest = ast.unparse(ast.Module(body=node.body[1:] if own else node.body, type_ignores=[])) or "pass"
        after = "".join(source.splitlines(keepends=True)[node.end_lineno :])
        return f"\n    {_docstring(doc)}\n{_indented(rest, '    ')}\n{after}"
    indent = " " * first.col_offset
    lines = source.splitlines(keepends=True)
    text = indent + _docstring(doc) + "\n"
    start = first.end_lineno if own else first.lineno - 1
    between = "" if own else "".join(lines[_last_header_line(node, source) : first.lineno - 1])
    return "\n" + text + between + "".join(lines[start:])


def _last_header_line(node: Any, source: str) -> int:
    return source[: _header_span(node, source)[1]].count("\n") + 1


def _docstring(doc: str) -> str:
    escaped = doc.replace("\\", "\\\\").replace('"""', '\\"\\"\\"')
    return f'"""{escaped}"""' if not escaped.endswith('"') else f'"""{escaped[:-1]}\\""""'


def _indented(text: str, indent: str) -> str:
    return "\n".join(indent + line if line else line for line in text.split("\n"))


def import_lines(source: str) -> dict[str, str]:
    """The import statements at the top level of a module, by the name that each binds."""
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return {}
    found: dict[str, str] = {}
    for node in tree.body:
        if isinstance(node, ast.Import):
            for alias in node.names:
                found[(alias.asname or alias.name).split(".")[0]] = ast.unparse(ast.Import(names=[alias]))
        elif isinstance(node, ast.ImportFrom) and node.module not in (None, "__future__") and not node.level:
            for alias in (a for a in node.names if a.name != "*"):
                found[alias.asname or alias.name] = ast.unparse(ast.ImportFrom(node.module, [alias], 0))
    return found


def free_names(source: str) -> set[str]:
    """The names that a source reads and does not bind itself, builtins left out; empty where it does not compile."""
    import symtable

    try:
        table = symtable.symtable(source, "<source>", "exec")
    except (SyntaxError, ValueError, RecursionError):
        return set()
    bound = {s.get_name() for s in table.get_symbols() if s.is_assigned() or s.is_imported() or s.is_namespace()}
    read: set[str] = set()
    todo = [table]
    while todo:
        scope = todo.pop()
        todo += scope.get_children()
        top = scope is table
        read |= {s.get_name() for s in scope.get_symbols() if s.is_referenced() and (top or s.is_global())}
    return read - bound - set(dir(builtins))
