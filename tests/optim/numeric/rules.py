"""Update rules written out from their papers, one gradient at a time: what the registry's entries are held to.

Each takes the start, the gradients of all steps and the learning rate, and returns where they lead. Where the library's
documented form differs from the paper's (diffGrad, Sophia), it is the library's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from trace_opt.optim.numeric.stepper import Stepper

Tensor = torch.Tensor


def steps(gradients: Sequence[Tensor]) -> Iterator[tuple[int, Tensor]]:
    return enumerate(gradients, 1)


def adam(x: Tensor, gradients: Sequence[Tensor], lr: float, *, coupled: float = 0.1, apart: float = 0) -> Tensor:
    m, v = torch.zeros_like(x), torch.zeros_like(x)
    for t, given in steps(gradients):
        g = given + coupled * x
        x = x - lr * apart * x
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        x = x - lr * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
    return x


def adamw(x: Tensor, gradients: Sequence[Tensor], lr: float) -> Tensor:
    return adam(x, gradients, lr, coupled=0, apart=0.01)


def sgd(x: Tensor, gradients: Sequence[Tensor], lr: float) -> Tensor:
    b = torch.zeros_like(x)
    for _, g in steps(gradients):
        b = 0.9 * b + g + 0.1 * x
        x = x - lr * b
    return x


def rmsprop(x: Tensor, gradients: Sequence[Tensor], lr: float) -> Tensor:
    v = torch.zeros_like(x)
    for _, g in steps(gradients):
        v = 0.99 * v + 0.01 * g**2
        x = x - lr * g / (v.sqrt() + 1e-8)
    return x


def adagrad(x: Tensor, gradients: Sequence[Tensor], lr: float) -> Tensor:
    total = torch.zeros_like(x)
    for _, g in steps(gradients):
        total = total + g**2
        x = x - lr * g / (total.sqrt() + 1e-10)
    return x


def nadam(x: Tensor, gradients: Sequence[Tensor], lr: float) -> Tensor:
    m, v, product = torch.zeros_like(x), torch.zeros_like(x), 1.0
    for t, g in steps(gradients):
        mu, after = 0.9 * (1 - 0.5 * 0.96 ** (t * 0.004)), 0.9 * (1 - 0.5 * 0.96 ** ((t + 1) * 0.004))
        product *= mu
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        ahead = after * m / (1 - product * after) + (1 - mu) * g / (1 - product)
        x = x - lr * ahead / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
    return x


def radam(x: Tensor, gradients: Sequence[Tensor], lr: float) -> Tensor:
    m, v, most = torch.zeros_like(x), torch.zeros_like(x), 2 / (1 - 0.999) - 1
    for t, g in steps(gradients):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        length = most - 2 * t * 0.999**t / (1 - 0.999**t)
        update = m / (1 - 0.9**t)
        if length > 5:
            r = ((length - 4) * (length - 2) * most / ((most - 4) * (most - 2) * length)) ** 0.5
            update = update * r * math.sqrt(1 - 0.999**t) / (v.sqrt() + 1e-8)
        x = x - lr * update
    return x


def adamax(x: Tensor, gradients: Sequence[Tensor], lr: float) -> Tensor:
    m, u = torch.zeros_like(x), torch.zeros_like(x)
    for t, g in steps(gradients):
        m, u = 0.9 * m + 0.1 * g, torch.maximum(0.999 * u, g.abs() + 1e-8)
        x = x - lr / (1 - 0.9**t) * m / u
    return x


def adadelta(x: Tensor, gradients: Sequence[Tensor], lr: float) -> Tensor:
    v, d = torch.zeros_like(x), torch.zeros_like(x)
    for _, g in steps(gradients):
        v = 0.9 * v + 0.1 * g**2
        update = g * (d + 1e-6).sqrt() / (v + 1e-6).sqrt()
        d = 0.9 * d + 0.1 * update**2
        x = x - lr * update
    return x


def asgd(x: Tensor, gradients: Sequence[Tensor], lr: float) -> Tensor:
    eta = lr
    for t, g in steps(gradients):
        x = x * (1 - 1e-4 * eta) - eta * g
        eta = lr / (1 + 1e-4 * lr * t) ** 0.75
    return x


def rprop(x: Tensor, gradients: Sequence[Tensor], lr: float) -> Tensor:
    before, size = torch.zeros_like(x), torch.full_like(x, lr)
    for _, g in steps(gradients):
        sign = (g * before).sign()
        size = (size * torch.where(sign > 0, 1.2, torch.where(sign < 0, 0.5, 1.0))).clamp(1e-6, 50)
        before = torch.where(sign < 0, 0.0, g)
        x = x - size * before.sign()
    return x


def adafactor(x: Tensor, gradients: Sequence[Tensor], lr: float) -> Tensor:
    rows, columns = torch.zeros(len(x), 1, dtype=x.dtype), torch.zeros(1, x.shape[1], dtype=x.dtype)
    for t, g in steps(gradients):
        share = t**-0.8
        rows = (1 - share) * rows + share * (g**2).mean(1, keepdim=True)
        columns = (1 - share) * columns + share * (g**2).mean(0, keepdim=True)
        eps = torch.finfo(x.dtype).eps
        update = g / (rows @ columns / rows.mean().clamp_min(eps)).clamp_min(eps**2).sqrt()
        size = update.norm() / math.sqrt(x.numel())
        rate = max(1e-3, float(x.norm()) / math.sqrt(x.numel())) * min(lr, 1 / math.sqrt(t))
        x = x - rate * update / max(1.0, float(size))
    return x


def muon(x: Tensor, gradients: Sequence[Tensor], lr: float) -> Tensor:
    m = torch.zeros_like(x)
    for _, g in steps(gradients):
        m = 0.95 * m + 0.05 * g
        u = (0.05 * g + 0.95 * m).bfloat16()
        u = u.T if len(x) > x.shape[1] else u
        u = u / u.norm().clamp_min(1e-7)
        for _ in range(5):
            gram = u @ u.T
            u = torch.addmm(u, torch.addmm(gram, gram, gram, beta=-4.775, alpha=2.0315), u, beta=3.4445)
        u = u.T if len(x) > x.shape[1] else u
        x = x * (1 - lr * 0.1) - lr * math.sqrt(max(1, len(x) / x.shape[1])) * u.to(x.dtype)
    return x


def lion_k(direction: Callable[[Tensor], Tensor], decay: float = 0.1) -> Callable[..., Tensor]:
    def rule(x: Tensor, gradients: Sequence[Tensor], lr: float) -> Tensor:
        m = torch.zeros_like(x)
        for _, g in steps(gradients):
            x = x - lr * (direction(0.9 * m + 0.1 * g) + decay * x)
            m = 0.99 * m + 0.01 * g
        return x

    return rule


lion = lion_k(torch.sign)


def sophia(p: float, gamma: float, betas: tuple[float, float], decay: float) -> Callable[..., Tensor]:
    """An estimate, the square of the gradient less 0.3, arrives at every third step."""

    def rule(x: Tensor, gradients: Sequence[Tensor], lr: float) -> Tensor:
        m, h = torch.zeros_like(x), torch.zeros_like(x)
        for t, g in steps(gradients):
            if t % 3 == 1:
                h = betas[1] * h + (1 - betas[1]) * (g**2 - 0.3)
            m = betas[0] * m + (1 - betas[0]) * g
            x = x * (1 - lr * decay) - lr * (m / (gamma * h).clamp_min(1e-12)).clamp(-p, p)
        return x

    return rule


sophiah = sophia(0.01, 1.0, (0.96, 0.99), 0.1)
sophia_g = sophia(1.0, 0.05, (0.965, 0.99), 0.1)


def diffgrad(x: Tensor, gradients: Sequence[Tensor], lr: float) -> Tensor:
    m, v, before = torch.zeros_like(x), torch.zeros_like(x), torch.zeros_like(x)
    for t, g in steps(gradients):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        rate = lr * math.sqrt(1 - 0.999**t) / (1 - 0.9**t)
        x = x - rate * torch.sigmoid((before - g).abs()) * m / ((v + 1e-15).sqrt() + 1e-8)
        before = g
    return x


def adabelief(x: Tensor, gradients: Sequence[Tensor], lr: float) -> Tensor:
    m, s = torch.zeros_like(x), torch.zeros_like(x)
    for t, g in steps(gradients):
        x = x * (1 - lr * 0.1)
        m = 0.9 * m + 0.1 * g
        s = 0.999 * s + 0.001 * (g - m) ** 2 + 1e-16
        x = x - lr * (m / (1 - 0.9**t)) / ((s / (1 - 0.999**t)).sqrt() + 1e-16)
    return x


def exadam(*, growing: bool) -> Callable[..., Tensor]:
    def rule(x: Tensor, gradients: Sequence[Tensor], lr: float) -> Tensor:
        m, v, eps = torch.zeros_like(x), torch.zeros_like(x), 1e-8
        for t, g in steps(gradients):
            rate = lr * math.log(math.sqrt(2) * math.sqrt(t + 1)) if growing else lr
            x = x * (1 - rate * 0.1)
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            d1, d2 = 1 + v / (v + eps) * 0.999**t, 1 + m**2 / (m**2 + eps) * 0.9**t
            up = (m + g) / (1 - 0.9**t) * d1
            x = x - rate * up / ((v / (1 - 0.999**t) * d2).sqrt() + eps)
        return x

    return rule


def m_fac(x: Tensor, gradients: Sequence[Tensor], lr: float) -> Tensor:
    seen: list[Tensor] = []
    b = torch.zeros_like(x)
    for _, given in steps(gradients):
        g = (given + 0.1 * x).reshape(-1)
        seen = [*seen, g][-8:]
        window = torch.stack(seen)
        fisher = 0.5 * torch.eye(len(g), dtype=x.dtype) + window.T @ window / len(seen)
        b = 0.5 * b + torch.linalg.solve(fisher, g).reshape(x.shape)
        x = x - lr * b
    return x


def frugal(x: Tensor, gradients: Sequence[Tensor], lr: float, parts: Sequence[Sequence[int]] = ()) -> Tensor:
    """Columns, in epochs of six steps; `parts` are the columns of each epoch."""
    m = v = torch.zeros(0)
    for t, g in steps(gradients):
        epoch, count = divmod(t - 1, 6)
        chosen = list(parts[epoch])
        if count == 0:
            m, v = torch.zeros_like(g[:, chosen]), torch.zeros_like(g[:, chosen])
        part = g[:, chosen]
        m, v = 0.9 * m + 0.1 * part, 0.999 * v + 0.001 * part**2
        update = g.sign()
        update[:, chosen] = m / (1 - 0.9 ** (count + 1)) / ((v / (1 - 0.999 ** (count + 1))).sqrt() + 1e-8)
        x = x * (1 - lr * 0.01) - lr * update
    return x


def adagrad_norm(x: Tensor, gradients: Sequence[Tensor], lr: float) -> Tensor:
    total = 0.01**2
    for _, g in steps(gradients):
        total += float((g**2).sum())
        x = x * (1 - lr * 0.1) - lr * g / math.sqrt(total)
    return x


HELD: dict[str, tuple[str, Callable[..., Tensor], float, dict[str, Any]]] = {
    "adam": ("adam", adam, 0.01, {"weight_decay": 0.1}),
    "adamw": ("adamw", adamw, 0.01, {}),
    "sgd": ("sgd", sgd, 0.01, {"momentum": 0.9, "weight_decay": 0.1}),
    "rmsprop": ("rmsprop", rmsprop, 0.01, {}),
    "adagrad": ("adagrad", adagrad, 0.1, {}),
    "nadam": ("nadam", nadam, 0.01, {}),
    "radam": ("radam", radam, 0.01, {}),
    "adamax": ("adamax", adamax, 0.01, {}),
    "adadelta": ("adadelta", adadelta, 1.0, {}),
    "asgd": ("asgd", asgd, 0.1, {}),
    "rprop": ("rprop", rprop, 0.01, {}),
    "adafactor": ("adafactor", adafactor, 0.05, {}),
    "muon": ("muon", muon, 0.02, {}),
    "lion": ("lion", lion, 0.01, {"weight_decay": 0.1}),
    "sophiah": ("sophiah", sophiah, 1.0, {"weight_decay": 0.1}),
    "sophia-g": ("sophia-g", sophia_g, 0.01, {"weight_decay": 0.1}),
    "diffgrad": ("diffgrad", diffgrad, 0.01, {}),
    "adabelief": ("adabelief", adabelief, 0.01, {"weight_decay": 0.1}),
    "exadam": ("exadam", exadam(growing=False), 0.01, {"weight_decay": 0.1}),
    "exadam, growing": ("exadam", exadam(growing=True), 0.01, {"weight_decay": 0.1, "growing": True}),
    "m-fac": ("m-fac", m_fac, 0.1, {"window": 8, "damping": 0.5, "momentum": 0.5, "weight_decay": 0.1}),
    "lion-k": ("lion-k", lion, 0.01, {"weight_decay": 0.1}),
    "adagrad-norm": ("adagrad-norm", adagrad_norm, 0.1, {"weight_decay": 0.1}),
}
"""Entry, rule, learning rate and options, by what is held."""


# -- what is followed ------------------------------------------------------------------------------------------------


def gradients(count: int = 20, shape: tuple[int, ...] = (4, 6), seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(count)]


def leaf(shape: tuple[int, ...] = (4, 6), dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.linspace(-1, 1, torch.Size(shape).numel(), dtype=dtype).reshape(shape).requires_grad_()


def follow(stepper: Stepper, x: torch.Tensor, given: list[torch.Tensor], first: int = 0) -> torch.Tensor:
    for t, gradient in enumerate(given, first):
        x.grad = gradient.to(x)
        stepper.step([x.grad**2 - 0.3] if stepper.curvature != "none" and t % 3 == 0 else None)
    return x.detach()
