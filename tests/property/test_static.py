"""Static batches against plain loops: cost in closed form, SCLS's DP, Magnus's WMA, and conservation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sooner.core import ConfigError, DataError
from sooner.sim.static import Bilinear, profile_and_fit, run_batch
from sooner.sim.systems import scls
from sooner.sim.systems.magnus_batching import Batcher, MagnusBatch, cache_reads, halves, wma
from sooner.sim.systems.scls_batching import Memory, split
from sooner.workloads.columns import Workload

lengths = st.integers(1, 300)
costs = st.builds(
    Bilinear,
    prefill=st.tuples(st.floats(0, 1e-3), st.floats(0, 1e-3), st.floats(0, 1e-3), st.floats(1e-3, 0.1)),
    decode=st.tuples(st.floats(0, 1e-5), st.floats(0, 1e-3), st.floats(0, 1e-4), st.floats(1e-3, 0.1)),
)
TRUTH = Bilinear(prefill=(1.7e-4, 0.0, 0.0, 0.035), decode=(1.1e-6, 4e-4, 0.0, 0.035))


@given(costs, st.integers(1, 64), lengths, st.integers(1, 200))
def test_the_closed_form_of_a_batch_is_the_sum_of_its_steps(
    cost: Bilinear, rows: int, length: int, tokens: int
) -> None:
    p, d = cost.prefill, cost.decode
    explicit = p[0] * rows * length + p[1] * rows + p[2] * length + p[3]
    for cached in range(length + 1, length + tokens):
        explicit += d[0] * rows * cached + d[1] * rows + d[2] * cached + d[3]
    assert cost.batch_s(rows, length, tokens) == pytest.approx(explicit, rel=1e-9)


@given(st.lists(st.tuples(lengths, lengths), min_size=1, max_size=12), st.integers(1, 300))
def test_a_batch_counts_every_token(rows: list[tuple[int, int]], limit: int) -> None:
    inputs, remaining = (np.array(column) for column in zip(*rows, strict=True))
    ran = run_batch(TRUTH, inputs, remaining, limit)
    assert ran.steps == min(limit, max(remaining))
    assert ran.valid + ran.invalid == ran.steps * len(rows)
    assert ran.invalid == sum(max(ran.steps - int(r), 0) for r in remaining)
    assert ran.pad == sum(max(inputs) - int(i) for i in inputs)
    assert ran.seconds == pytest.approx(float(TRUTH.batch_s(len(rows), max(inputs), ran.steps)))


def brute(inputs: list[int], slice_len: int, cost: Bilinear, memory: Memory, cap: int | None) -> float:
    """The least total time over all ways of cutting the sorted inputs."""
    n, least = len(inputs), np.inf
    for cuts in itertools.product((False, True), repeat=n - 1):
        edges = [0, *(i + 1 for i, cut in enumerate(cuts) if cut), n]
        total = 0.0
        for begin, end in itertools.pairwise(edges):
            most = min(memory.rows(inputs[end - 1] + slice_len), cap or n)
            total += (
                np.inf if end - begin > most else float(cost.batch_s(end - begin, inputs[end - 1], slice_len))
            )
        least = min(least, total)
    return least


@given(
    st.lists(st.integers(1, 1000), min_size=1, max_size=9),
    st.integers(1, 256),
    costs,
    st.sampled_from([Memory(), Memory(available_bytes=1.5e9), Memory(steps=((200, 4), (700, 2)))]),
    st.none() | st.integers(1, 4),
)
@settings(max_examples=150)
def test_the_dp_is_the_best_of_all_partitions(
    inputs: list[int], slice_len: int, cost: Bilinear, memory: Memory, cap: int | None
) -> None:
    inputs.sort()
    batches = split(np.array(inputs), slice_len, cost, memory, cap)
    assert [begin for begin, _, _ in batches] == [0, *(end for _, end, _ in batches[:-1])]
    assert batches[-1][1] == len(inputs)
    for begin, end, estimate in batches:
        assert end - begin <= min(memory.rows(inputs[end - 1] + slice_len), cap or len(inputs))
        assert estimate == pytest.approx(float(cost.batch_s(end - begin, inputs[end - 1], slice_len)))
    assert sum(estimate for *_, estimate in batches) == pytest.approx(
        brute(inputs, slice_len, cost, memory, cap), rel=1e-9
    )


def test_memory_by_formula_and_by_steps() -> None:
    assert Memory(available_bytes=1000, token_bytes=1, share=0.9).rows(100) == 9
    assert Memory(available_bytes=1000, token_bytes=1, share=0.9).rows(5000) == 1  # alone it is served
    table = Memory(steps=((100, 8), (500, 2)))
    assert [table.rows(total) for total in (100, 101, 500, 501)] == [8, 2, 2, 1]
    with pytest.raises(ConfigError, match="by rising length"):
        Memory(steps=((500, 2), (100, 8)))
    with pytest.raises(ConfigError, match="share in"):
        Memory(share=1.5)


def explicit_wma(length: list[int], generation: list[int], aggregate: str) -> float:
    longest, most, members = max(length), max(generation), []
    for own, made in zip(length, generation, strict=True):
        padding = made * (longest - own)
        members.append(padding + sum(g + longest for g in range(made, most)))
    return float(max(members) if aggregate == "max" else sum(members))


members = st.lists(st.tuples(st.integers(1, 200), st.integers(1, 200)), min_size=1, max_size=8)


@given(members, st.sampled_from(["max", "sum"]))
def test_wma_in_closed_form_is_the_explicit_sum(rows: list[tuple[int, int]], aggregate: str) -> None:
    length, generation = (list(column) for column in zip(*rows, strict=True))
    assert wma(length, generation, aggregate) == pytest.approx(explicit_wma(length, generation, aggregate))


@given(
    st.lists(members, min_size=1, max_size=5),
    st.tuples(st.integers(1, 200), st.integers(1, 200)),
    st.sampled_from(["max", "sum"]),
    st.floats(0, 60_000),
    st.tuples(st.integers(400, 4000), st.none() | st.integers(1, 6)),
)
def test_a_newcomer_joins_the_batch_of_least_wma(
    groups: list[list[tuple[int, int]]],
    new: tuple[int, int],
    aggregate: str,
    threshold: float,
    bounds: tuple[int, int | None],
) -> None:
    (memory, most), queue = bounds, []
    for group in groups:
        queue.append(MagnusBatch())
        for length, generation in group:
            queue[-1].add(0, length, generation)
    queue[0].open = len(groups) % 2 == 0
    chances = []
    for batch, group in zip(queue, groups, strict=True):
        rows = [*group, new]
        length, generation = (list(column) for column in zip(*rows, strict=True))
        wasted = explicit_wma(length, generation, aggregate)
        fits = len(rows) * (max(length) + max(generation)) <= memory and len(rows) <= (most or len(rows))
        chances.append(wasted if batch.open and fits and wasted < threshold else np.inf)
    batcher = Batcher(memory_tokens=memory, threshold=threshold, aggregate=aggregate, max_rows=most)
    chosen = batcher.insert(queue, 1, *new)
    assert 1 in chosen.members
    if min(chances) == np.inf:
        assert chosen is queue[-1]
        assert chosen.members == [1]
        assert len(queue) == len(groups) + 1
    else:
        place = next(i for i, batch in enumerate(queue) if batch is chosen)
        assert chances[place] == min(chances)


def test_a_split_batch_is_closed_and_loses_nobody() -> None:
    batch = MagnusBatch()
    length, generation = np.array([5, 6, 7, 8, 9]), np.array([90, 10, 50, 20, 70])
    for request in range(5):
        batch.add(request, int(length[request]), int(generation[request]))
    first, second = halves(batch, length, generation)
    assert sorted(first.members + second.members) == list(range(5))
    assert set(first.members) == {1, 3}  # the two shortest together
    assert not first.open
    assert not second.open
    assert second.least == min(float(cache_reads(float(a), float(b))) for a, b in ((7, 50), (9, 70), (5, 90)))


@given(
    st.lists(st.tuples(st.floats(0, 30), st.integers(1, 400), st.integers(1, 1024)), min_size=1, max_size=25),
    st.sampled_from(list(scls.LADDER)),
    st.integers(1, 4),
    st.sampled_from([16, 100, 128, 1024]),
)
@settings(max_examples=60)
def test_scls_serves_every_request_once(
    requests: list[tuple[float, int, int]], rung: str, workers: int, slice_len: int
) -> None:
    requests.sort()
    arrival, prompt, output = (np.array(column) for column in zip(*requests, strict=True))
    workload = Workload(arrival_time=arrival.astype(float), prompt_len=prompt, output_len=output)
    chosen = scls.SclsSettings(workers=workers, slice_len=slice_len)
    rng = np.random.default_rng(0)
    done = scls.serve(workload, scls.LADDER[rung], chosen, TRUTH, TRUTH, Memory(), rng)
    assert np.isfinite(done.finish).all()
    assert (done.finish > arrival).all()
    if rung == "SLS":
        assert (done.slices == 1).all()
    else:  # a slice count of ceil(reply / S): who ended is not run again
        np.testing.assert_array_equal(done.slices, -(-output // slice_len))
    assert done.invalid >= 0


def test_the_estimator_is_fitted_not_copied() -> None:
    exact = profile_and_fit(TRUTH, np.random.default_rng(0), noise=0.0)
    assert max(exact.prefill_error_pct, exact.decode_error_pct) < 1e-6
    np.testing.assert_allclose(exact.cost.decode, TRUTH.decode, atol=1e-9)
    noisy = profile_and_fit(TRUTH, np.random.default_rng(0), noise=0.03)
    assert noisy.cost != TRUTH
    assert 1 < noisy.decode_error_pct < 5


def test_what_is_refused() -> None:
    with pytest.raises(DataError, match="at least 1 row"):
        run_batch(TRUTH, np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), 5)
    with pytest.raises(ConfigError, match="noise=-1"):
        profile_and_fit(TRUTH, np.random.default_rng(0), noise=-1.0)
    with pytest.raises(ConfigError, match="interval_share=1"):
        scls.SclsSettings(interval_share=1.0)
    workload = Workload(arrival_time=np.zeros(1), prompt_len=np.array([5]), output_len=np.array([2000]))
    with pytest.raises(DataError, match="allowed: 1024"):
        scls.serve(
            workload, scls.LADDER["SLS"], scls.SclsSettings(), TRUTH, TRUTH, Memory(), np.random.default_rng()
        )
