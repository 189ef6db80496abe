"""Free queries are matched to texts by their maps."""

from itertools import permutations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from lfi_mmdet.models.distillers.query_assignment import (
    HungarianAssignment,
    QueryAssignment,
    SinkhornAssignment,
    map_costs,
)
from lfi_mmdet.registry import build_part

BOTH = [HungarianAssignment, SinkhornAssignment]
seeds = st.integers(0, 2**31 - 1)
sizes = st.integers(1, 6)


def some_maps(seed, queries, rows, batch=2, layers=2, cells=9):
    """Log attention (B, L, K, N) and targets (B, L, P, N) without ties."""
    random = torch.Generator().manual_seed(seed)
    log_attention = torch.randn(batch, layers, queries, cells, generator=random)
    target = torch.randn(batch, layers, rows, cells, generator=random) * 2
    return log_attention.log_softmax(-1), target.softmax(-1)


def total(costs, found):
    """Sum of costs and number of matched rows per image."""
    matched = found >= 0
    picked = costs.gather(2, found.clamp(min=0)[..., None])[..., 0]
    return (picked * matched).sum(1), matched.sum(1)


def test_the_cost_is_the_divergence_averaged_over_layers():
    log_attention, target = some_maps(0, 3, 4)
    costs = map_costs(log_attention, target)
    for row in range(4):
        for query in range(3):
            expected = F.kl_div(
                log_attention[:, :, query], target[:, :, row], reduction='none'
            )
            expected = expected.sum(-1).mean(1)
            torch.testing.assert_close(costs[:, row, query], expected)


@settings(max_examples=60, deadline=None)
@given(seed=seeds, count=st.integers(1, 5), columns=st.integers(1, 5))
def test_no_other_assignment_costs_less_than_the_hungarian(seed, count, columns):
    random = torch.Generator().manual_seed(seed)
    costs = torch.rand(1, count, columns, generator=random)
    rows = torch.rand(1, count, generator=random) < 0.8
    found = HungarianAssignment(0).match(costs, rows)
    wanted = rows[0].nonzero()[:, 0].tolist()
    size = min(len(wanted), columns)
    least = min(
        sum(costs[0, r, c].item() for r, c in zip(some_rows, some_columns))
        for some_rows in permutations(wanted, size)
        for some_columns in permutations(range(columns), size)
    )
    cost, matched = total(costs, found)
    assert matched.item() == size and not (found >= 0)[~rows].any()
    assert cost.item() == pytest.approx(least, abs=1e-5)


@pytest.mark.parametrize('kind', BOTH)
@settings(max_examples=60, deadline=None)
@given(seed=seeds, tied=st.integers(0, 4), free=sizes, count=sizes)
def test_every_present_row_has_a_query_of_its_own(kind, seed, tied, free, count):
    log_attention, target = some_maps(seed, tied + free, count)
    random = torch.Generator().manual_seed(seed)
    texts = torch.stack(
        [torch.randperm(tied + 6, generator=random)[:count] for _ in range(2)]
    )
    present = torch.rand(2, count, generator=random) < 0.7
    queries, kept = kind(tied)(log_attention, target, texts, present)
    assert queries.dtype == torch.long and queries.shape == kept.shape == texts.shape
    assert ((queries >= 0) & (queries < tied + free)).all()
    assert torch.equal(queries[texts < tied], texts[texts < tied])
    assert (queries[texts >= tied] >= tied).all()
    assert not (kept & ~present).any()
    assert torch.equal(kept[texts < tied], present[texts < tied])
    for image in range(2):
        own = queries[image][kept[image]].tolist()
        assert len(set(own)) == len(own)
        others = texts[image] >= tied
        wanted = int((present[image] & others).sum())
        assert int((kept[image] & others).sum()) == min(wanted, free)


@pytest.mark.parametrize('kind', BOTH)
@settings(max_examples=60, deadline=None)
@given(seed=seeds, free=sizes, count=sizes)
def test_the_order_of_rows_and_free_queries_does_not_matter(kind, seed, free, count):
    tied = 2
    log_attention, target = some_maps(seed, tied + free, count)
    texts = torch.arange(1, 1 + count).expand(2, -1)  # the first one is tied
    present = torch.ones(2, count, dtype=torch.bool)
    random = torch.Generator().manual_seed(seed)
    rows = torch.randperm(count, generator=random)
    order = torch.cat([torch.arange(tied), tied + torch.randperm(free)])
    place = order.argsort()  # where each query has gone to
    queries, kept = kind(tied)(log_attention, target, texts, present)
    moved, moved_kept = kind(tied)(
        log_attention[:, :, order], target[:, :, rows], texts[:, rows], present
    )
    assert torch.equal(moved_kept, kept[:, rows])
    expected = place[queries[:, rows]]
    assert torch.equal(moved[moved_kept], expected[moved_kept])


@pytest.mark.parametrize('kind', BOTH)
def test_padding_changes_nothing(kind):
    log_attention, target = some_maps(3, 6, 4)
    texts = torch.arange(4).expand(2, -1)
    present = torch.tensor([[True, True, False, True], [True] * 4])
    plain = kind(1)(log_attention, target, texts, present)
    padded = kind(1)(
        F.pad(log_attention, (0, 5), value=-1e4), F.pad(target, (0, 5)), texts, present
    )
    assert all(torch.equal(a, b) for a, b in zip(plain, padded))
    assert plain[1].equal(present)


def separable(count, queries, seed=0):
    """Every row has one query that looks where it does, and likes no other."""
    order = torch.randperm(queries, generator=torch.Generator().manual_seed(seed))
    spots = torch.eye(queries)
    attention = 0.9 * spots[order] + 0.1 / queries
    return attention.log()[None, None], spots[None, None, :count], order.argsort()


@pytest.mark.parametrize('kind', BOTH)
@pytest.mark.parametrize('count, queries', [(1, 1), (3, 7), (8, 8), (20, 30)])
def test_each_row_gets_the_query_that_looks_where_it_does(kind, count, queries):
    log_attention, target, expected = separable(count, queries)
    texts = torch.arange(count)[None]
    found, kept = kind(0)(log_attention, target, texts, torch.ones(1, count).bool())
    assert found[0].tolist() == expected[:count].tolist() and kept.all()


@pytest.mark.parametrize('count', [8, 20, 25])
def test_sinkhorn_costs_hardly_more_than_the_least(count):
    """For blobs of any place and size, also where rows compete for queries."""
    torch.manual_seed(count)
    cells = torch.cartesian_prod(torch.arange(16.0), torch.arange(16.0))

    def blobs(number, width):
        centres = torch.rand(8, 1, number, 1, 2) * 16
        return (-(cells - centres).square().sum(-1) / (2 * width**2)).softmax(-1)

    attention = 0.7 * blobs(20, 5.0) + 0.3 / 256
    costs = map_costs(attention.log(), blobs(count, 2.0))
    rows = torch.ones(8, count, dtype=torch.bool)
    least, matched = total(costs, HungarianAssignment(0).match(costs, rows))
    cost, matched_too = total(costs, SinkhornAssignment(0).match(costs, rows))
    assert torch.equal(matched, matched_too)
    assert (cost / least < 1.03).all() and (cost / least).mean() < 1.01


@pytest.mark.parametrize('kind', BOTH)
def test_of_two_rows_that_want_one_query_the_better_gets_it(kind):
    costs = torch.tensor([[[0.5, 3.0, 2.0], [0.1, 4.0, 3.5]]])
    found = kind(0).match(costs, torch.ones(1, 2, dtype=torch.bool))
    assert found.tolist() == [[2, 0]]


@pytest.mark.parametrize('kind', BOTH)
def test_without_enough_queries_the_rows_that_fit_worst_are_left_out(kind):
    log_attention, target, expected = separable(5, 5)
    log_attention = log_attention[:, :, expected[[0, 3]]]  # those of rows 0 and 3
    texts = torch.arange(5)[None]
    found, kept = kind(0)(log_attention, target, texts, torch.ones(1, 5).bool())
    assert kept.tolist() == [[True, False, False, True, False]]
    assert found[kept].tolist() == [0, 1]


@pytest.mark.parametrize('kind', BOTH)
def test_images_without_any_text_pass(kind):
    log_attention, target = some_maps(0, 5, 3)
    absent = torch.zeros(2, 3, dtype=torch.bool)
    texts = torch.tensor([[0, 3, 4], [1, 2, 5]])
    queries, kept = kind(2)(log_attention, target, texts, absent)
    assert not kept.any() and (queries < 5).all()
    nothing = torch.zeros(2, 0, dtype=torch.long)
    queries, kept = kind(2)(log_attention, target[:, :, :0], nothing, nothing.bool())
    assert queries.shape == kept.shape == (2, 0)


@pytest.mark.parametrize('kind', BOTH)
def test_equal_costs_are_decided_by_the_order(kind):
    costs = torch.full((2, 3, 4), 0.7)
    rows = torch.tensor([[True] * 3, [False, True, True]])
    found = kind(0).match(costs, rows)
    assert found.tolist() == [[0, 1, 2], [-1, 0, 1]]


@pytest.mark.parametrize('kind', BOTH)
def test_attention_that_is_not_a_number_stops_no_training(kind):
    log_attention, target = some_maps(0, 4, 3, batch=1)
    log_attention[0, :, 2] = float('nan')
    texts, present = torch.arange(3)[None], torch.ones(1, 3, dtype=torch.bool)
    queries, kept = kind(0)(log_attention, target, texts, present)
    assert kept.all() and sorted(queries[0].tolist()) == [0, 1, 3]


@pytest.mark.parametrize('kind', BOTH)
def test_layers_may_come_as_a_list_and_gradients_end_here(kind):
    log_attention, target = some_maps(1, 5, 3)
    log_attention.requires_grad_()
    texts, present = torch.arange(3).expand(2, -1), torch.ones(2, 3).bool()
    stacked = kind(0)(log_attention, target, texts, present)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        listed = kind(0)(list(log_attention.unbind(1)), target, texts, present)
    assert all(torch.equal(a, b) for a, b in zip(stacked, listed))
    assert not any(value.requires_grad for value in stacked)


def test_sinkhorn_never_asks_for_a_value():
    """Tensors without values stand for a device that the host must not wait for."""
    log_attention, target = (value.to('meta') for value in some_maps(0, 6, 4))
    costs, rows = map_costs(log_attention, target), torch.ones(2, 4).bool().to('meta')
    found = SinkhornAssignment(0).match(costs, rows)
    assert found.shape == (2, 4) and found.is_meta
    with pytest.raises(NotImplementedError):  # so this would have been noticed
        HungarianAssignment(0).match(costs, rows)


@pytest.mark.parametrize(
    'changes, complaint',
    [
        (dict(num_tied=-1), 'assignment.num_tied=-1 is negative'),
        (dict(epsilon=0), 'assignment.epsilon=0 is not positive'),
        (dict(iterations=0), 'assignment.iterations=0 is less than 1'),
        (dict(type='Hungarian'), "did you mean 'HungarianAssignment'"),
    ],
)
def test_bad_options_are_named(changes, complaint):
    cfg = dict(type='SinkhornAssignment', num_tied=2)
    with pytest.raises((ValueError, KeyError), match=complaint):
        build_part({**cfg, **changes}, QueryAssignment, 'distiller.assignment')


@pytest.mark.parametrize('kind', BOTH)
def test_a_student_without_free_queries_is_refused(kind):
    log_attention, target = some_maps(0, 5, 3)
    texts = torch.arange(3).expand(2, -1)
    message = 'num_tied=5 leaves no free query of backbone.num_queries=5'
    with pytest.raises(ValueError, match=message):
        kind(5)(log_attention, target, texts, texts >= 0)
