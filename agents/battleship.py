"""The game of Battleship: a policy in two functions that a language model rewrites, told in words what its shots did.

`reason` reads the board and says how promising each square is; `act` picks the square to shoot at. At the start the one
finds all squares alike and the other shoots at random, also where it shot before; neither can do much about it alone.
What a model writes runs in a sandbox. A game is one rollout: the score is the share of the ships' squares that are hit
within the shots allowed.

    trace-opt run agents/battleship.py --model openai/gpt-4.1-mini
    trace-opt run agents/battleship.py --set size=10 --set ships=[5,4,3,3,2] --set shots=45

The game and the two functions are those of Trace (Cheng et al., arXiv 2406.16218, section 5); boards, contract and
feedback are our own.
"""

# ruff: noqa: ARG001 # the start leaves unused what a better policy needs

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from trace_opt import Feedback, OptoPrime, trace
from trace_opt.core.trainable import parameter_of
from trace_opt.errors import ProblemError
from trace_opt.problem import Problem

UNKNOWN, MISS, HIT, SUNK = ".", "o", "x", "#"

Square = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Game:
    """A game as it stands after some shots.

    Attributes:
        ships: The squares of each ship; the policy never sees them.
        board: What the policy sees, row by row: `.` unknown, `o` missed, `x` hit, `#` hit and its ship sunk.
        afloat: The lengths of the ships that are not sunk.
        luck: A number for chance, below 2**31, new for each shot.
        log: Every shot and what came of it.
    """

    ships: tuple[tuple[Square, ...], ...]
    board: list[str]
    afloat: list[int]
    luck: int
    log: tuple[tuple[Square, str], ...] = ()


# -- the policy --------------------------------------------------------------------------------------------------------


def reason(board: list[str], afloat: list[int]) -> list[list[float]]:
    """How promising each square of a Battleship board is as the next shot, row by row: the greater, the better.

    The board is square, a text for each row: '.' was not shot at yet, 'o' is a miss, 'x' a hit on a ship that is still
    afloat, '#' a hit on a ship that is sunk. `afloat` are the lengths of the ships still afloat. Ships lie straight along
    a row or a column, do not overlap, and may touch.
    """
    return [[0.0 for _ in row] for row in board]


def act(promise: list[list[float]], board: list[str], luck: int) -> tuple[int, int]:
    """The row and the column of the next shot, both counted from 0.

    `promise` is what `reason` gave for this board. A shot at a square that is not '.' is lost, and so is one outside the
    board. `luck` is a random number below 2**31, another for each shot.
    """
    return divmod(luck % len(board) ** 2, len(board))


class Player:
    """The workflow: plays one game with the two functions.

    Args:
        size: Rows and columns of the board.
        ships: The lengths of the ships.
        shots: How many shots there are.
        sandbox: Where rewritten functions run.
    """

    def __init__(self, size: int, ships: Sequence[int], shots: int, sandbox: Literal["monty", "process"]) -> None:
        self.size = size
        self.ships = tuple(ships)
        self.shots = shots
        self.reason: Callable[..., Any] = trace(trainable=True, sandbox=sandbox)(reason)
        self.act: Callable[..., Any] = trace(trainable=True, sandbox=sandbox)(act)

    def __call__(self, seed: int) -> Game:
        """The game that a seed decides, played until all ships are sunk or no shot is left."""
        game = deal(seed, self.size, self.ships)
        for _ in range(self.shots):
            game = fire(game, self.act(self.reason(game.board, game.afloat), game.board, game.luck))
            if not game.afloat:
                break
        return game


# -- the game ----------------------------------------------------------------------------------------------------------


@trace
def deal(seed: int, size: int, ships: Sequence[int]) -> Game:
    """A new game: each ship in turn lies at random where there is room for it."""
    rng = random.Random(seed)  # noqa: S311 # a board that can be dealt again
    while (placed := _placed(rng, size, ships)) is None:
        pass
    return Game(placed, [UNKNOWN * size] * size, list(ships), rng.randrange(2**31))


def _placed(rng: random.Random, size: int, ships: Sequence[int]) -> tuple[tuple[Square, ...], ...] | None:
    """The squares of all ships, or None where the last of them found no room."""
    taken: set[Square] = set()
    placed: list[tuple[Square, ...]] = []
    for length in ships:
        free = [squares for squares in _places(size, length) if taken.isdisjoint(squares)]
        if not free:
            return None
        placed.append(rng.choice(free))
        taken.update(placed[-1])
    return tuple(placed)


def _places(size: int, length: int) -> list[tuple[Square, ...]]:
    """Wherever a ship can lie on an empty board."""
    found: dict[tuple[Square, ...], None] = {}
    for line in range(size):
        for start in range(size - length + 1):
            found[tuple((line, start + i) for i in range(length))] = None
            found[tuple((start + i, line) for i in range(length))] = None
    return list(found)


@trace
def fire(game: Game, square: tuple[int, int]) -> Game:
    """The game after a shot; one outside the board or at a square already tried is lost."""
    size, (row, column) = len(game.board), square
    luck = random.Random(game.luck).randrange(2**31)  # noqa: S311 # repeatable, and another for each shot
    if not (0 <= row < size and 0 <= column < size):
        return replace(game, luck=luck, log=(*game.log, (square, "outside the board")))
    if game.board[row][column] != UNKNOWN:
        return replace(game, luck=luck, log=(*game.log, (square, "already tried")))
    ship = next((ship for ship in game.ships if square in ship), None)
    board = _marked(game.board, [square], MISS if ship is None else HIT)
    afloat, told = game.afloat, "a miss" if ship is None else "a hit"
    if ship is not None and all(board[r][c] == HIT for r, c in ship):
        board, told = _marked(board, ship, SUNK), f"a hit that sank the ship of {len(ship)}"
        at = afloat.index(len(ship))
        afloat = [*afloat[:at], *afloat[at + 1 :]]
    return Game(game.ships, board, afloat, luck, (*game.log, (square, told)))


def _marked(board: Sequence[str], squares: Sequence[Square], mark: str) -> list[str]:
    rows = [list(row) for row in board]
    for row, column in squares:
        rows[row][column] = mark
    return ["".join(row) for row in rows]


# -- the guide ---------------------------------------------------------------------------------------------------------


def hit_rate(game: Game) -> float:
    """The share of the ships' squares that were hit."""
    return sum(mark in (HIT, SUNK) for row in game.board for mark in row) / sum(map(len, game.ships))


def guide(game: Game, example: dict[str, int]) -> Feedback:
    """The share of the ships' squares that were hit, and in words which shots were lost and which ships are left."""
    hits, squares = round(hit_rate(game) * sum(map(len, game.ships))), sum(map(len, game.ships))
    lost = [(number, at, told) for number, (at, told) in enumerate(game.log, 1) if not told.startswith("a ")]
    misses = len(game.log) - hits - len(lost)
    said = [f"{hits} of {squares} squares with ships hit in {len(game.log)} shots, {misses} missed"]
    for why in ("already tried", "outside the board"):
        found = [(number, at) for number, at, told in lost if told == why]
        if found:
            said.append(f"{len(found)} lost because {why}, such as shot {found[0][0]} at {found[0][1]}")
    said.append(f"still afloat: {', '.join(map(str, game.afloat))}" if game.afloat else "all ships are sunk")
    wounded = [
        f"the ship of {len(ship)} at {ship[0]} to {ship[-1]} was hit in {len(marks) - marks.count(UNKNOWN)} places only"
        for ship in game.ships
        if {HIT, UNKNOWN} <= set(marks := [game.board[row][column] for row, column in ship])
    ]
    hidden = [_shown(game, row) for row in range(len(game.board))]
    return Feedback(
        hit_rate(game), "; ".join(said + wounded) + "\nthe board, S where ships were not hit:\n" + "\n".join(hidden)
    )


def _shown(game: Game, row: int) -> str:
    left = {square for ship in game.ships for square in ship}
    return "".join(
        "S" if mark == UNKNOWN and (row, column) in left else mark for column, mark in enumerate(game.board[row])
    )


def problem(
    *, size: int = 8, ships: tuple[int, ...] = (4, 3, 3, 2), shots: int = 28, boards: int = 120, seed: int = 0,
    sandbox: Literal["monty", "process"] = "monty",
) -> Problem:  # fmt: skip
    """Learn to play Battleship.

    Args:
        size: Rows and columns of the board.
        ships: The lengths of the ships, as in [5,4,3].
        shots: How many shots a game has.
        boards: How many games there are: a quarter to learn from, a quarter to choose by, half to judge by.
        seed: Which boards are dealt, and all chance of the search.
        sandbox: Where functions that a model wrote run.

    Raises:
        ProblemError: an option asks for boards that cannot be.
    """
    _refuse_impossible(size, ships, shots, boards)
    player = Player(size, ships, shots, sandbox)
    dealt = [{"seed": seed * 1_000_000 + i} for i in range(boards)]
    quarter = boards // 4
    return Problem(
        workflow=player,
        train=dealt[:quarter],
        val=dealt[quarter : 2 * quarter],
        test=dealt[2 * quarter :],
        guide=guide,
        parameters=[parameter_of(player.reason), parameter_of(player.act)],
        optimizers=[OptoPrime(objective=f"Hit as many squares with ships as possible within {shots} shots.")],
        seed=seed,
        score_range=(0.0, 1.0),
        description=f"Battleship on {size} by {size} squares, {shots} shots",
    )


def _refuse_impossible(size: int, ships: Sequence[int], shots: int, boards: int) -> None:
    if not 2 <= size <= 20:
        raise ProblemError(f"option 'size' got {size}; give from 2 to 20 rows and columns")
    if not ships or not all(1 <= length <= size for length in ships) or 2 * sum(ships) > size**2:
        raise ProblemError(
            f"option 'ships' got {list(ships)!r}; give lengths from 1 to size={size} that fill half of the board at most"
        )
    if not 1 <= shots <= size**2:
        raise ProblemError(f"option 'shots' got {shots}; give from 1 to {size**2}, the squares of the board")
    if boards < 8:
        raise ProblemError(f"option 'boards' got {boards}; give 8 or more, to learn, choose and judge by")
