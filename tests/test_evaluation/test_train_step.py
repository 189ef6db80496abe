"""A measured step is a whole one, and the next one does the same work."""

import copy

import pytest
import torch
from mmengine.logging import MessageHub

from lfi_mmdet.evaluation import TrainStep, demo_data, head_work, resident_bytes
from lfi_mmdet.evaluation.train_step import common_steps
from tests.tiny import CLASSES


@pytest.fixture
def step(detector, tiny_config):
    return TrainStep(
        detector, copy.deepcopy(tiny_config), demo_data(len(CLASSES), (64, 64), 2)
    )


def test_a_step_runs_teacher_losses_gradients_and_optimizer(step):
    model, asked = step.model, []
    present_in = model.teacher.present_in
    model.teacher.present_in = lambda samples: (
        asked.append(len(samples)) or present_in(samples)
    )
    model.eval()
    reached = []
    for name, parameter in model.named_parameters():
        parameter.register_post_accumulate_grad_hook(
            lambda p, n=name: reached.append(n)
        )
    step()
    assert asked == [2] and model.training
    assert {'backbone.queries', 'roi_head.mask_head.conv_logits.weight'} <= set(reached)
    states = step.optimizer.optimizer.state
    assert len(states) == len([p for p in model.parameters() if p.requires_grad])
    moments = states[model.backbone.patch_embed.proj.weight]
    assert moments['exp_avg'].abs().sum() > 0
    assert all(p.grad is None for p in model.parameters())


def test_no_weight_changes_so_every_step_samples_the_same(step):
    before = {name: value.clone() for name, value in step.model.state_dict().items()}
    works = []
    for _ in range(2):
        torch.manual_seed(1)
        with head_work(step.model) as work:
            step()
        works.append(work)
    assert works[0] == works[1] and works[0]['boxes'] == 16
    for name, value in step.model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_the_data_is_not_used_up(step):
    before = [sample.gt_instances.clone() for sample in step.data['data_samples']]
    step()
    for sample, old in zip(step.data['data_samples'], before):
        assert torch.equal(sample.gt_instances.bboxes, old.bboxes)
        assert sample.gt_instances.masks.masks.shape == old.masks.masks.shape
    assert step.data['inputs'][0].dtype == torch.uint8


def test_a_teacher_at_an_interval_is_asked_once_in_it(detector, tiny_config):
    schedule = detector.distiller.schedule
    schedule.interval, schedule.warmup, schedule.stop = 3, 500, 1000
    hub = MessageHub.get_current_instance()
    hub.update_info('iter', 7)
    data = demo_data(len(CLASSES), (64, 64))
    step = TrainStep(detector, copy.deepcopy(tiny_config), data, steps=6)
    asked, trained = [], []
    inner, present_in = detector.loss_with_interactions, detector.teacher.present_in
    detector.loss_with_interactions = lambda *args: (
        trained.append(schedule.current()) or inner(*args)
    )
    detector.teacher.present_in = lambda samples: (
        asked.append(1) or present_in(samples)
    )
    step()
    # past the warm-up, before the end
    assert trained == [1, 0, 0, 1, 0, 0] and len(asked) == 2
    # a training that goes on finds its iteration again
    assert hub.get_info('iter') == 7 and 'max_iters' not in hub.runtime_info


def test_models_come_round_together(detector):
    assert common_steps([torch.nn.Linear(1, 1)]) == 1
    detector.distiller.schedule.interval = 4
    other = torch.nn.Module()
    other.distiller = copy.deepcopy(detector.distiller)
    other.distiller.schedule.interval = 6
    assert common_steps([detector, other, torch.nn.Linear(1, 1)]) == 12


def test_weights_optimizer_and_teacher_stay_in_memory(step):
    model = step.model
    weights = sum(p.numel() for p in model.parameters())
    buffers = resident_bytes(model.buffers())
    assert resident_bytes(step.tensors()) == 4 * weights + buffers
    step.prepare()
    # AdamW keeps two moments and a counter for each parameter
    moments = 4 * (2 * weights + len(list(model.parameters())))
    assert resident_bytes(step.tensors()) == 4 * weights + buffers + moments
    model.teacher.network = torch.nn.Linear(100, 10, bias=False).half()
    model.teacher.texts = dict(embeds=torch.zeros(7))
    more = resident_bytes(step.tensors()) - (4 * weights + buffers + moments)
    assert more == 2 * 1000 + 4 * 7


def test_loss_scaling_settles_before_anything_is_measured(step):
    class Scaler:
        scales = [2.0**k for k in (16, 15, 14, 14, 14)]

        def get_scale(self):
            return self.scales[min(calls, 4)]

    calls = 0

    def run():
        nonlocal calls
        calls += 1

    assert step.settle() == 0  # float32: nothing is scaled
    settling = TrainStep.__new__(
        type('Fake', (TrainStep,), dict(__call__=lambda s: run()))
    )
    settling.optimizer = type('Wrapper', (), dict(loss_scaler=Scaler()))
    assert settling.settle() == 3
    calls = 0
    Scaler.scales = [2.0**-k for k in range(5)]
    with pytest.raises(RuntimeError, match='still after 2 steps'):
        settling.settle(most=2)
