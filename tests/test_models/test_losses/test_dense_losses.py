"""The competitors, each on a case computed by hand."""

import math

import pytest
import torch

from lfi_mmdet.models.losses.dense import (
    ACAMLoss,
    AttentionTransferLoss,
    CWDLoss,
    DensePair,
    FitNetLoss,
    MGDLoss,
    RKDLoss,
    TRGLoss,
    ViLDLoss,
)

ALL = [
    FitNetLoss,
    CWDLoss,
    RKDLoss,
    TRGLoss,
    AttentionTransferLoss,
    MGDLoss,
    ACAMLoss,
    ViLDLoss,
]
BEYOND = 99.0


def row(student, teacher) -> DensePair:
    """One image of a row of places, and one more place that is padding.

    Args:
        student: One list of values over the places per channel.
        teacher: The same.
    """
    student, teacher = (
        torch.tensor(values, dtype=torch.float64)[None, :, None]
        for values in (student, teacher)
    )
    valid = torch.ones(1, 1, student.shape[3] + 1, dtype=torch.bool)
    valid[..., -1] = False
    student, teacher = (
        torch.nn.functional.pad(values, (0, 1), value=BEYOND)
        for values in (student, teacher)
    )
    return DensePair(student, teacher, valid)


def made(loss, student_dims=1, teacher_dims=1):
    """Connect a loss in double precision; its 1x1 convolution changes nothing."""
    loss.connect(student_dims, teacher_dims)
    if hasattr(loss, 'align'):
        loss.align.weight.data.fill_(0)
        for channel in range(min(student_dims, teacher_dims)):
            loss.align.weight.data[channel, channel] = 1
        loss.align.bias.data.fill_(0)
    return loss.double()


def test_fitnet_is_half_the_mean_square_of_what_is_left_after_a_regression():
    loss = made(FitNetLoss(whiten=False), 1, 2)
    loss.align.weight.data[:, 0, 0, 0] = torch.tensor([2.0, 1.0])
    loss.align.bias.data[:] = torch.tensor([0.0, 1.0])
    # r(S) is (2, 4) and (2, 3): squares 1, 0, 4, 9
    pair = row([[1.0, 2.0]], [[1.0, 4.0], [0.0, 0.0]])
    assert loss(pair).item() == pytest.approx(14 / 4 / 2)


def test_whitened_tokens_have_mean_0_and_variance_1_at_each_place():
    # (1, 3) and (9, 5) become (-1, 1) and (1, -1), which is the student
    pair = row([[-1.0, 1.0], [1.0, -1.0]], [[1.0, 9.0], [3.0, 5.0]])
    assert made(FitNetLoss(), 2, 2)(pair).item() == pytest.approx(0, abs=1e-6)


def test_cwd_compares_a_channel_as_a_distribution_over_places():
    loss = made(CWDLoss(temperature=2.0))
    # at tau = 2: (3/4, 1/4) against (1/2, 1/2)
    pair = row([[0.0, 0.0]], [[2 * math.log(3), 0.0]])
    divergence = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert divergence == pytest.approx(0.130812, abs=1e-6)
    assert loss(pair).item() == pytest.approx(50 * 4 * divergence)


def triangle(points) -> torch.Tensor:
    """Three images of one place each, whose embeddings are points of the plane."""
    return torch.tensor(points, dtype=torch.float64)[..., None, None]


def test_rkd_compares_distances_and_angles_of_embeddings():
    pair = DensePair(
        student=triangle([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]),
        teacher=triangle([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]]),
        valid=torch.ones(3, 1, 1, dtype=torch.bool),
    )
    # 3, 4, 5 over their mean are 0.75, 1, 1.25; 1, 1, 1.414 are 0.879, 0.879, 1.243
    distances = (0.128680**2 + 0.121320**2 + 0.007359**2) / 2 / 3
    # cosines 0, 0.6, 0.8 against 0, 0.707, 0.707
    angles = (0.107107**2 + 0.092893**2) / 2 / 3
    both = RKDLoss(cells=1)(pair).item()
    assert both == pytest.approx(25 * distances + 50 * angles, abs=1e-5)
    assert both == pytest.approx(0.298057, abs=1e-5)
    alone = RKDLoss(cells=1, angle_weight=0.0)(pair).item()
    assert alone == pytest.approx(25 * distances, abs=1e-5)


def test_rkd_takes_means_over_the_unpadded_part_of_each_cell():
    points = torch.tensor([[0.0, 3.0], [0.0, 0.0]], dtype=torch.float64)
    teacher = points[None, :, None].repeat_interleave(2, 3)  # 4 places, 2 cells
    student = teacher.clone()
    valid = torch.tensor([True, True, True, False])[None, None]
    student[..., 3] = BEYOND
    assert RKDLoss()(DensePair(student, teacher, valid)).item() == 0


@pytest.mark.parametrize('apart', [1e-2, 1e-4, 1e-6, 0.0])
def test_the_gradient_of_rkd_stays_bounded_where_embeddings_meet(apart):
    """Of far ones it is about 2 here; without a bound, two near ones have 1 / apart."""

    def steepest(features):
        features = features.clone().requires_grad_()
        pair = DensePair(features, drawn[4:], torch.ones(4, 1, 1, dtype=torch.bool))
        RKDLoss(cells=1)(pair).backward()
        assert features.grad.isfinite().all()
        return features.grad.abs().max().item()

    drawn = torch.randn(8, 8, 1, 1, generator=torch.Generator().manual_seed(0))
    far, other = drawn[:4], drawn[1]
    two = far.clone()
    two[1] = far[0] + apart * other
    assert steepest(two) < 10 * steepest(far)
    # where all are alike no distance is a unit, but the length of an embedding is
    assert steepest(far[:1] + apart * far) < 1e4


def test_trg_keeps_the_kernels_of_neighbours():
    there = torch.ones(2, dtype=torch.bool)
    student = torch.tensor([[1.0, 0.0], [0.0, 5.0]], dtype=torch.float64)
    teacher = torch.tensor([[1.0, 1.0], [2.0, 2.0]], dtype=torch.float64)
    # squared distances 2 and 0: kernels e^-1 and 1, beside a 0 for the node itself
    p = 1 / (1 + math.exp(-math.exp(-1)))
    q = 1 / (1 + math.exp(-1))
    expected = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    assert expected == pytest.approx(0.0459, abs=1e-4)
    assert TRGLoss().local(student, teacher, there).item() == pytest.approx(expected)


def test_trg_ties_a_node_to_its_nearest_others_only():
    from lfi_mmdet.models.losses.dense.trg import neighbour_kernel

    angles = torch.tensor([0.0, 10.0, 30.0, 90.0]).deg2rad()
    tokens = torch.stack([angles.cos(), angles.sin()], 1)
    there = torch.tensor([True, True, True, False])
    kernel = neighbour_kernel(tokens, there, 1, 1.0)
    tied = [[0, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0]]
    assert (kernel > 0).int().tolist() == tied
    assert kernel[0, 1].item() == pytest.approx(
        math.exp(-(1 - math.cos(math.radians(10))))
    )


def test_trg_finds_the_same_place_among_all_and_cools_down():
    loss = TRGLoss(temperature=(0.2, 0.1))
    there = torch.tensor([True, True, False])
    nodes = torch.tensor([[1.0, 0.0], [0.0, 3.0], [7.0, 7.0]])
    # cosines 1 and 0 at 0.2: logits 5 and 0
    expected = math.log(1 + math.exp(-5))
    assert loss.contrast(nodes, 2 * nodes, there).item() == pytest.approx(
        expected, rel=1e-4
    )
    from mmengine.logging import MessageHub

    hub = MessageHub.get_current_instance()
    hub.update_info('max_iters', 10)
    for iteration, temperature in ((0, 0.2), (5, 0.15), (10, 0.1)):
        hub.update_info('iter', iteration)
        assert loss.current_temperature() == pytest.approx(temperature)


def test_trg_keeps_the_context_within_an_image():
    # whitened: twice (-1, 1) against (-1, 1) and (1, -1); rows of the softmax are
    # (1/2, 1/2) and (p, 1 - p) with p = 1 / (1 + e^(-2 sqrt 2))
    pair = row([[1.0, 5.0], [3.0, 9.0]], [[1.0, 3.0], [3.0, 1.0]])
    p = 1 / (1 + math.exp(-2 * math.sqrt(2)))
    found = TRGLoss().inner(pair, pair.valid.flatten(1)).item()
    assert found == pytest.approx(2 * (p - 0.5) ** 2, rel=1e-4)
    assert found == pytest.approx(0.39461, abs=1e-4)


def test_attention_transfer_compares_where_features_are_strong():
    # (1, 4) / sqrt(17) against (1, 0)
    pair = row([[1.0, 2.0]], [[1.0, 0.0], [1.0, 0.0]])
    squares = (1 - 1 / math.sqrt(17)) ** 2 + 16 / 17
    expected = 1000 / 2 * squares / 2
    assert expected == pytest.approx(378.732, abs=1e-3)
    assert AttentionTransferLoss()(pair).item() == pytest.approx(expected)


def passing_mgd(**kwargs):
    """Both convolutions of the generator hand on what they get."""
    loss = made(MGDLoss(whiten=False, **kwargs))
    for conv in (loss.generation[0], loss.generation[2]):
        conv.weight.data.zero_()[0, 0, 1, 1] = 1
        conv.bias.data.zero_()
    return loss


def test_mgd_generates_the_teacher_from_what_is_not_masked(monkeypatch):
    # ReLU makes (1, 0) of (1, -2): squares 4 and 1
    pair = row([[1.0, -2.0]], [[3.0, 1.0]])
    assert passing_mgd(mask_ratio=0.0)(pair).item() == pytest.approx(10 * 5 / 2)
    drawn = torch.tensor([0.44, 0.46, 0.5])[None, None]
    monkeypatch.setattr(torch, 'rand', lambda *args, **kwargs: drawn)
    # without the first place: squares 9 and 1
    assert passing_mgd()(pair).item() == pytest.approx(10 * 10 / 2)


def test_mgd_masks_the_stated_share_of_places_anew_each_time():
    loss, seen = passing_mgd(), []
    loss.generation[0].register_forward_pre_hook(
        lambda m, args: seen.append(args[0] != 0)
    )
    features = torch.ones(4, 1, 50, 50, dtype=torch.float64)
    pair = DensePair(features, features, torch.ones(4, 50, 50, dtype=torch.bool))
    loss(pair), loss(pair)
    assert seen[0].double().mean().item() == pytest.approx(0.55, abs=0.02)
    assert not torch.equal(*seen)


def region_pair(student=(0.0, 0.0, 5.0)) -> DensePair:
    """A region over 2 x 2 places that all look like the first of two classes."""
    teacher = torch.zeros(1, 2, 3, 3)
    teacher[:, 0] = 7.0
    return DensePair(
        student=torch.zeros(1, 1, 3, 3),
        teacher=teacher,
        valid=torch.ones(1, 3, 3, dtype=torch.bool),
        class_embeds=torch.eye(2),
        boxes=torch.tensor([[0.0, 0.0, 0.0, 2.0, 2.0]]),
        logits=torch.tensor([student]),
    )


def test_vild_draws_the_class_logits_to_what_the_teacher_takes_a_region_for():
    # cosines (1, 0) at tau = 1: (0.731, 0.269) against (1/2, 1/2), background aside
    p = math.e / (1 + math.e)
    divergence = p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p))
    assert divergence == pytest.approx(0.110944, abs=1e-6)
    loss = ViLDLoss(temperature=1.0)
    assert loss(region_pair()).item() == pytest.approx(0.5 * divergence, rel=1e-5)
    distance = ViLDLoss(temperature=1.0, divergence='l1')(region_pair()).item()
    assert distance == pytest.approx(0.5 * (p - 0.5), rel=1e-5)


def test_vild_without_a_region_is_0_and_other_classes_are_refused():
    pair = region_pair()
    pair.boxes, pair.logits = pair.boxes[:0], pair.logits[:0]
    assert ViLDLoss()(pair).item() == 0
    with pytest.raises(ValueError, match='box head has 4 classes .* teacher 2'):
        ViLDLoss()(region_pair((0.0,) * 5))


# -- what holds for all of them --------------------------------------------------------
def random_pair(seed=0, student=None) -> DensePair:
    """Two images, the second with a column and a row of padding."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    valid = torch.ones(2, 4, 5, dtype=torch.bool)
    valid[1, 3], valid[1, :, 4] = False, False
    return DensePair(
        student=draw(2, 6, 4, 5) if student is None else student,
        teacher=draw(2, 6, 4, 5),
        valid=valid,
        class_embeds=torch.eye(6)[:3],
        boxes=torch.tensor([[0, 0, 0, 2, 3], [1, 0.5, 1, 3, 2.5]]),
        logits=draw(2, 4).requires_grad_(),
    )


def built(kind):
    torch.manual_seed(1)
    loss = kind()
    loss.connect(6, 6)
    return loss


@pytest.mark.parametrize('kind', ALL)
def test_gradients_reach_the_student_and_every_parameter(kind):
    loss = built(kind)
    student = torch.randn(2, 6, 4, 5, requires_grad=True)
    pair = random_pair(student=student)
    value = loss(pair)
    assert value.ndim == 0 and torch.isfinite(value) and value > 0
    value.backward()
    learner = pair.logits if kind is ViLDLoss else student
    assert torch.isfinite(learner.grad).all() and learner.grad.abs().sum() > 0
    for name, parameter in loss.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def test_what_lies_on_padding_is_0_on_both_sides():
    """So a loss has to leave out a place only where 0 would count."""
    pair = random_pair()
    padding = ~pair.valid[:, None].expand_as(pair.student)
    assert pair.student[padding].eq(0).all() and pair.teacher[padding].eq(0).all()
    assert pair.student[~padding].ne(0).all() and pair.teacher[~padding].ne(0).all()


#: What makes a loss on a larger batch comparable: all its places drawn, none masked at
#: random, and no cells, which are parts of the padded batch
WHOLE = {
    TRGLoss: dict(tokens_per_image=100),
    MGDLoss: dict(mask_ratio=0.0),
    RKDLoss: dict(cells=1),
}


@pytest.mark.parametrize('kind', ALL)
@pytest.mark.parametrize('rows, columns', [(1, 0), (0, 1), (3, 2)])
def test_more_padding_changes_nothing(kind, rows, columns):
    """The align convolution, for one, makes its bias of the 0 on padding."""
    loss = built(lambda: kind(**WHOLE.get(kind, {})))
    for name, parameter in loss.named_parameters():
        if name.endswith('bias'):
            torch.nn.init.constant_(parameter, 3.0)
    pair = random_pair()
    sides = ((pair.student, BEYOND), (pair.teacher, -BEYOND), (pair.valid, False))
    margin = (0, columns, 0, rows)
    larger = DensePair(
        *(torch.nn.functional.pad(side, margin, value=fill) for side, fill in sides),
        pair.class_embeds, pair.boxes, pair.logits,
    )  # fmt: skip
    assert loss(larger).item() == pytest.approx(loss(pair).item(), rel=1e-5)


@pytest.mark.parametrize('kind', [CWDLoss, RKDLoss, AttentionTransferLoss, FitNetLoss])
def test_a_student_that_is_the_teacher_has_nothing_to_learn(kind):
    pair = random_pair()
    loss = kind(**(dict(whiten=False) if kind is FitNetLoss else {}))
    loss = made(loss, 6, 6).float()
    same = DensePair(pair.teacher, pair.teacher, pair.valid)
    assert loss(same).item() == pytest.approx(0, abs=1e-5)
    assert loss(pair).item() > 1e-3


def test_the_relations_of_trg_have_nothing_to_learn_from_an_equal():
    pair = random_pair()
    same = DensePair(pair.teacher, 3 * pair.teacher, pair.valid)
    loss = TRGLoss(global_weight=0.0)
    loss.connect(6, 6)
    assert loss(same).item() == pytest.approx(0, abs=1e-5)
    assert loss(pair).item() > 1e-3


def test_logits_that_are_the_teachers_leave_vild_nothing_to_learn():
    loss, pair = built(ViLDLoss), random_pair()
    background = torch.zeros(2, 1)
    pair.logits = torch.cat([loss.taught(pair) + 3, background], 1)
    assert loss(pair).item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize('kind', ALL)
def test_an_image_that_is_all_padding_leaves_the_loss_finite(kind):
    loss, pair = built(kind), random_pair()
    pair.valid[1] = False
    student = pair.student.requires_grad_()
    value = loss(
        DensePair(
            student, pair.teacher, pair.valid, pair.class_embeds, pair.boxes,
            pair.logits,
        )
    )  # fmt: skip
    assert torch.isfinite(value)
    value.backward()
    assert student.grad is None or torch.isfinite(student.grad).all()


@pytest.mark.parametrize(
    'build, message',
    [
        (lambda: CWDLoss(temperature=0.0), 'CWDLoss.temperature=0.0 must be above 0'),
        (lambda: RKDLoss(cells=0), 'RKDLoss.cells=0 must be at least 1'),
        (lambda: MGDLoss(mask_ratio=1.0), 'MGDLoss.mask_ratio=1.0 must be from 0'),
        (lambda: ACAMLoss(num_masks=1), 'ACAMLoss.num_masks=1 must be at least 2'),
        (lambda: TRGLoss(sigma=0.0), 'TRGLoss.sigma=0.0 must be above 0'),
        (lambda: ViLDLoss(divergence='js'), "divergence='js' is not known; choose"),
        (lambda: ViLDLoss(num_regions=0), 'num_regions=0 must be at least 1'),
    ],
)
def test_impossible_settings_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
