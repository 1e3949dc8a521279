"""Every code decodes the exact sum from whatever it says is enough, and time is counted as the model says."""

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trace_opt.search.code_timing import Cluster, Window, time_code, time_sequential
from trace_opt.search.codes import Code, GradientCode, Repetition, Sequential, Uncoded, code_of

N = 12


def answers_of(code: Code, gradients: Any, workers: Any) -> dict[int, Any]:
    return {
        worker: sum(factor * gradients[chunk] for chunk, factor in code.weights(worker).items()) for worker in workers
    }


@pytest.mark.parametrize(
    "code", [Uncoded(6), Repetition(6, 2), Repetition(6, 3), GradientCode(6, 1), GradientCode(6, 3)]
)
def test_a_code_decodes_the_sum_from_every_set_of_workers_that_is_enough_and_from_no_other(code: Code) -> None:
    gradients = np.random.default_rng(1).standard_normal((code.chunks, 5))
    decoded = 0
    for count in range(code.n + 1):
        for arrived in itertools.combinations(range(code.n), count):
            found = answers_of(code, gradients, arrived)
            if code.enough(frozenset(arrived)):
                np.testing.assert_allclose(code.decode(found), gradients.sum(axis=0), atol=1e-8)
                decoded += 1
            else:
                with pytest.raises(ValueError, match="not enough"):
                    code.decode(found)
    assert decoded >= 1


@given(st.integers(2, 24), st.data())
@settings(max_examples=40, deadline=None)
def test_a_gradient_code_tolerates_any_s_stragglers(n: int, data: st.DataObject) -> None:
    s = data.draw(st.integers(0, n - 1))
    late = data.draw(st.sets(st.integers(0, n - 1), max_size=s))
    code = GradientCode(n, s, seed=data.draw(st.integers(0, 3)))
    gradients = np.random.default_rng(n).standard_normal((n, 3))
    found = code.decode(answers_of(code, gradients, [w for w in range(n) if w not in late]))
    np.testing.assert_allclose(found, gradients.sum(axis=0), atol=1e-5)


def test_loads_are_those_of_the_papers() -> None:
    assert GradientCode(N, 3).load == pytest.approx(4 / N)
    assert Repetition(N, 3).load == pytest.approx(3 / N)
    assert Sequential(256, 1, 2, 27).load == pytest.approx(0.00754, abs=1e-5)
    assert Sequential(8, 2, 4, 8).load == pytest.approx((4 - 1 + 2) / (8 * 3))


@pytest.mark.parametrize(("b", "w", "tolerated"), [(1, 2, 3), (2, 3, 4), (3, 5, 2), (2, 4, N)])
def test_a_sequential_job_covers_all_data_once(b: int, w: int, tolerated: int) -> None:
    scheme = Sequential(N, b, w, tolerated)
    covered = N * (w - 1) * scheme.chunk + (b * N * scheme.coded_chunk if scheme.code else 0)
    assert covered == pytest.approx(1.0)


def bursty(scheme: Sequential, rounds: int, seed: int) -> list[frozenset[int]]:
    """Stragglers that keep to the model, as many as it allows for."""
    rng = np.random.default_rng(seed)
    window, found = Window(scheme), []
    for _ in range(rounds):
        late: set[int] = set()
        for worker in rng.permutation(scheme.n):
            if rng.random() < 0.7 and window.holds(frozenset({*late, int(worker)})):
                late.add(int(worker))
        if not window.holds(frozenset(late)):
            late = set()
        window.add(frozenset(late))
        found.append(frozenset(late))
    return found


@pytest.mark.parametrize(("b", "w", "tolerated"), [(1, 2, 3), (2, 3, 4), (3, 5, 5), (1, 4, 2), (2, 4, N)])
@pytest.mark.parametrize("seed", range(3))
def test_every_sequential_job_is_decoded_exactly_and_in_time_while_stragglers_keep_to_the_model(
    b: int, w: int, tolerated: int, seed: int
) -> None:
    scheme, jobs = Sequential(N, b, w, tolerated), 15
    rng = np.random.default_rng(seed)
    own = {job: rng.standard_normal((N, w - 1, 4)) for job in range(jobs)}
    coded = {job: rng.standard_normal((b, N, 4)) for job in range(jobs)}
    chunks: dict[int, dict[tuple[int, int], Any]] = {job: {} for job in range(jobs)}
    groups: dict[int, list[dict[int, Any]]] = {job: [{} for _ in range(b)] for job in range(jobs)}
    late = bursty(scheme, jobs + scheme.delay, seed)
    assert any(late)

    for number in range(jobs + scheme.delay):
        if number < jobs:
            scheme.begin(number)
        for worker in range(N):
            tasks = scheme.tasks(number, worker)
            if worker in late[number]:
                continue
            scheme.arrived(worker, tasks)
            for task in tasks:
                if task.chunk is not None:
                    chunks[task.job][worker, task.chunk] = own[task.job][worker, task.chunk]
                elif task.group is not None and scheme.code is not None:
                    parts = coded[task.job][task.group]
                    groups[task.job][task.group][worker] = answers_of(scheme.code, parts, [worker])[worker]
        done = number - scheme.delay
        if done >= 0:
            assert scheme.known(done)
            total = own[done].sum(axis=(0, 1)) + (coded[done].sum(axis=(0, 1)) if scheme.code else 0)
            np.testing.assert_allclose(scheme.decode(chunks[done], groups[done]), total, atol=1e-6)
            scheme.forget(done)


def test_a_sequential_job_with_a_chunk_missing_is_not_decoded() -> None:
    with pytest.raises(ValueError, match="uncoded chunks are missing"):
        Sequential(N, 1, 2, 3).decode({}, [])


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: Repetition(10, 3), "do not divide"),
        (lambda: GradientCode(4, 4), "from 0 to 3"),
        (lambda: Sequential(8, 2, 2, 3), "0 < B < W"),
        (lambda: Sequential(8, 1, 2, 9), "0 < l <= n"),
    ],
)
def test_parameters_without_sense_are_refused(made: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        made()


def test_without_stragglers_time_is_that_of_the_load() -> None:
    cluster = Cluster(n=N, enter=0.0, stay=0.0, jitter=0.0, fixed=2.0, per_load=12.0)
    assert time_code(Uncoded(N), cluster, 10, 0) == pytest.approx(10 * (2 + 1))
    assert time_code(GradientCode(N, 2), cluster, 10, 0) == pytest.approx(10 * (2 + 3))


def test_waiting_pays_for_every_straggler_and_groups_only_where_all_of_one_straggle() -> None:
    cluster = Cluster(n=2, enter=1.0, stay=1.0, jitter=0.0, slow=8.0, fixed=1.0, per_load=0.0)
    assert time_code(Uncoded(2), cluster, 5, 0) == time_code(Repetition(2, 2), cluster, 5, 0) == pytest.approx(40.0)


def seconds(run: Any) -> float:
    return sum(run(seed) for seed in range(2)) / 2


def order(cluster: Cluster) -> Mapping[str, float]:
    return {
        "waiting": seconds(lambda seed: time_code(Uncoded(32), cluster, 100, seed)),
        "groups": seconds(lambda seed: time_code(Repetition(32, 2), cluster, 100, seed)),
        "GC": min(seconds(lambda seed, s=s: time_code(code_of(32, s), cluster, 100, seed)) for s in (1, 3, 6)),
        "M-SGC": seconds(lambda seed: time_sequential(Sequential(32, 4, 5, 10), cluster, 100, seed)),
    }


def test_m_sgc_takes_less_time_than_gradient_codes_under_bursts_where_rounds_grow_with_the_load() -> None:
    found = order(Cluster())
    assert found["groups"] < found["M-SGC"] < found["waiting"] < found["GC"]


def test_gradient_codes_take_less_time_than_m_sgc_where_rounds_do_not_grow_with_the_load() -> None:
    found = order(Cluster(fixed=10.0, per_load=0.0))
    assert found["GC"] < found["M-SGC"] < found["waiting"]
