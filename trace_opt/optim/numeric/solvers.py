"""Linear systems that are known only by their product with a vector.

Every answer carries the residual of the system itself, computed once more at the end: the estimate that a Krylov method
keeps while it runs stays small even where the method does not apply (conjugate gradients on an unsymmetric matrix), so
only a fresh product tells whether a solution is one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from trace_opt.errors import meant

if TYPE_CHECKING:
    import torch

Method = Literal["cg", "gmres", "dense"]
Product = Callable[["torch.Tensor"], "torch.Tensor"]
"""`x -> A x` on vectors of shape (n,)."""

_RESTART = 60
_CYCLES = 20
_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Solved:
    """What a solver ended with.

    Attributes:
        solution: Of shape (n,).
        residual: The norm of `A x - b` over that of `b`; infinite where the matrix is singular.
        iterations: Products with the matrix that were spent on it, the last check aside.
    """

    solution: torch.Tensor
    residual: float
    iterations: int


def solve(
    product: Product, right: torch.Tensor, method: Method, *, tol: float | None = None, most: int | None = None
) -> Solved:
    """Solve `A x = b` and measure how well it is solved; whoever asks has to look at `residual`.

    Args:
        product: `x -> A x`.
        right: b, of shape (n,).
        method: "cg" for symmetric definite matrices, "gmres" for any regular one, "dense" for small n: it builds the
            matrix by n products and factors it.
        tol: The relative residual at which a Krylov method stops; by default near what the dtype can give.
        most: The greatest number of products; by default enough for an n-dimensional space a few times over.

    Raises:
        ValueError: there is no such method.
    """
    import torch

    checked(method)
    size = norm(right)
    if size == 0.0:
        return Solved(torch.zeros_like(right), 0.0, 0)
    limit = (default_tol(right.dtype) if tol is None else tol) * size
    found, spent = _METHODS[method](product, right, limit, most)
    rest = norm(right - product(found)) if bool(torch.isfinite(found).all()) else float("inf")
    return Solved(found, rest / size, spent)


def checked(method: str) -> None:
    """Refuse a method that there is not.

    Raises:
        ValueError: it names what there is.
    """
    if method not in get_args(Method):
        hint = meant(method, get_args(Method), f"choose one of {list(get_args(Method))!r}")
        raise ValueError(f"there is no linear solver {method!r}; {hint}")


def default_tol(dtype: torch.dtype) -> float:
    """The relative residual that a Krylov method is asked for: 1e-12 in float64, about 6e-6 in float32."""
    import torch

    return float(torch.finfo(dtype).eps) ** 0.75 if dtype != torch.float64 else 1e-12


def accepted(dtype: torch.dtype, tol: float | None) -> float:
    """The relative residual up to which a solution counts as one: the root of what was asked for, half its digits.

    An ill-conditioned system cannot be solved further than that, while one that a method does not fit stays far above.
    """
    return float(default_tol(dtype) if tol is None else tol) ** 0.5


def norm(vector: torch.Tensor) -> float:
    """The Euclidean norm of a vector."""
    return float(linalg().vector_norm(vector.detach()))


def listed(vector: torch.Tensor) -> list[float]:
    """The entries of a vector."""
    return cast("Any", vector).tolist()


def linalg() -> Any:
    """`torch.linalg`, whose functions come without types."""
    import torch

    return torch.linalg


def _cg(product: Product, right: torch.Tensor, limit: float, most: int | None) -> tuple[torch.Tensor, int]:
    """Conjugate gradients (Hestenes and Stiefel 1952), begun anew from the true residual while that helps."""
    import torch

    most = 4 * right.numel() + 20 if most is None else most
    x, spent = torch.zeros_like(right), 0
    for _ in range(_ROUNDS):
        rest = right - product(x) if spent else right
        if norm(rest) <= limit or spent >= most:
            break
        x, spent = _conjugate(product, x, rest, limit, spent, most)
    return x, spent


def _conjugate(
    product: Product, x: torch.Tensor, rest: torch.Tensor, limit: float, spent: int, most: int
) -> tuple[torch.Tensor, int]:
    import torch

    along, square = rest, float(torch.dot(rest, rest))
    while spent < most and square > limit * limit:
        image = product(along)
        spent += 1
        bend = float(torch.dot(along, image))
        if bend == 0.0:
            break
        x = x + square / bend * along
        rest = rest - square / bend * image
        before, square = square, float(torch.dot(rest, rest))
        along = rest + square / before * along
    return x, spent


def _gmres(product: Product, right: torch.Tensor, limit: float, most: int | None) -> tuple[torch.Tensor, int]:
    """GMRES with restarts (Saad and Schultz 1986)."""
    import torch

    width = min(right.numel(), _RESTART)
    most = _CYCLES * width + right.numel() if most is None else most
    x, spent = torch.zeros_like(right), 0
    while spent < most:
        rest = right - product(x) if spent else right
        size = norm(rest)
        if size <= limit:
            break
        step, used = _arnoldi(product, rest / size, size, limit, min(width, most - spent))
        spent += used
        x = x + step
        # a round without progress is the last: the matrix is singular, or the rounding error is reached
        if norm(right - product(x)) > 0.99 * size:
            break
    return x, spent


def _arnoldi(product: Product, start: torch.Tensor, size: float, limit: float, width: int) -> tuple[torch.Tensor, int]:
    """The step in the Krylov space of `start` that leaves the least residual, and how many products it took."""
    import torch

    basis = [start]
    table = torch.zeros(width + 1, width, dtype=start.dtype)
    goal = torch.zeros(width + 1, dtype=start.dtype)
    goal[0] = size
    weights, count = goal[:0], 0
    for k in range(width):
        image = product(basis[k])
        for _ in range(2):  # twice is enough to keep the basis orthogonal
            shares = torch.stack(basis) @ image
            image = image - shares @ torch.stack(basis)
            table[: k + 1, k] += shares.cpu()
        height = norm(image)
        table[k + 1, k] = height
        count = k + 1
        part, wanted = table[: count + 1, :count], goal[: count + 1]
        weights = cast("torch.Tensor", linalg().lstsq(part, wanted[:, None], driver="gelsd").solution)[:, 0]
        if norm(wanted - part @ weights) <= limit or height <= 1e-14 * size:
            break
        basis.append(image / height)
    return weights.to(start.device) @ torch.stack(basis[:count]), count


def _dense(product: Product, right: torch.Tensor, limit: float, most: int | None) -> tuple[torch.Tensor, int]:  # noqa: ARG001 # one signature for all
    import torch

    matrix = dense_matrix(product, right)
    answer = linalg().solve_ex(matrix, right)
    failed = bool(answer.info != 0)
    return torch.full_like(right, float("nan")) if failed else answer.result, right.numel()


def dense_matrix(product: Product, like: torch.Tensor) -> torch.Tensor:
    """The matrix itself, column by column: `n` products.

    Args:
        product: `x -> A x`.
        like: A vector of shape (n,), for the dtype and device.
    """
    import torch

    unit = torch.eye(like.numel(), dtype=like.dtype, device=like.device)
    return torch.stack([product(column) for column in unit], 1)


_METHODS = {"cg": _cg, "gmres": _gmres, "dense": _dense}


# -- sketches --------------------------------------------------------------------------------------------------------


def sketch(
    matrix: torch.Tensor, right: torch.Tensor, generator: torch.Generator, *, limit: float,
    kind: Literal["gaussian", "kaczmarz"] = "gaussian", most: int = 1_000_000,
) -> Solved:  # fmt: skip
    """Solve `A x = b` by projecting on one random combination of its rows after another, until the residual is small.

    The step `x + s'(b - A x) / |A's|^2 A's` satisfies the sketched equation `s'A x = s'b` and moves no further than it
    has to. With a unit vector for s it is randomized Kaczmarz, which needs one row only.

    Args:
        matrix: A, of shape (n, n).
        right: b, of shape (n,).
        generator: Draws s; on the CPU.
        limit: The norm of the residual to reach, not relative.
        kind: "gaussian" draws s from a normal distribution, "kaczmarz" draws a row with the probability of its squared
            norm (Strohmer and Vershynin 2009).
        most: Steps at most.

    Source: I. Hong, S. Na, M. W. Mahoney and M. Kolar, "Constrained optimization via exact augmented Lagrangian and
        randomized iterative sketching", ICML 2023, arXiv 2305.18379, equation (8).
    """
    import torch

    x, size = torch.zeros_like(right), norm(right)
    squares = matrix.square().sum(1)
    rest = right.clone()
    spent = 0
    while spent < most and norm(rest) > limit:
        for drawn in _draws(squares, generator, kind, min(_BLOCK, most - spent)):
            row = matrix[drawn] if kind == "kaczmarz" else drawn @ matrix
            along = rest[drawn] if kind == "kaczmarz" else drawn @ rest
            step = along / row.square().sum() * row
            x = x + step
            rest = rest - matrix @ step
            spent += 1
        rest = right - matrix @ x  # what was kept along the way drifts
    return Solved(x, norm(rest) / size if size else 0.0, spent)


_BLOCK = 10  # steps between two looks at the residual, which waits for the device


def _draws(squares: torch.Tensor, generator: torch.Generator, kind: str, count: int) -> Any:
    import torch

    if kind == "kaczmarz":
        drawn: Any = torch.multinomial(squares.cpu(), count, replacement=True, generator=generator)
        return drawn.tolist()
    return torch.randn(count, squares.numel(), dtype=squares.dtype, generator=generator).to(squares.device)
