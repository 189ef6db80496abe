"""Mixed precision without an accelerator."""

import pytest
import torch
from mmdet.registry import OPTIM_WRAPPERS
from mmengine.config import Config
from mmengine.optim import OptimWrapper

from lfi_mmdet.engine import amp
from lfi_mmdet.engine.amp import BFloat16OptimWrapper, choose_precision
from lfi_mmdet.engine.preflight import InputError

BFLOAT16 = 'lfi_mmdet.engine.amp.BFloat16OptimWrapper'
AMP = dict(type='AmpOptimWrapper', loss_scale=512.0, dtype='float16')


def choose(monkeypatch, device, wrapper, flag):
    monkeypatch.setattr(amp, 'get_device', lambda: device)
    cfg = Config(dict(optim_wrapper=dict(wrapper, accumulative_counts=2)))
    note = choose_precision(cfg, flag)
    assert cfg.optim_wrapper.pop('accumulative_counts') == 2
    return cfg.optim_wrapper.to_dict(), note


@pytest.mark.parametrize(
    'device, wrapper, flag, chosen, note',
    [
        ('cpu', dict(type='OptimWrapper'), False, dict(type='OptimWrapper'), None),
        ('cpu', dict(), True, dict(type=BFLOAT16), 'bfloat16 on the CPU'),
        ('cpu', AMP, True, dict(type=BFLOAT16), 'bfloat16 on the CPU'),
        ('cpu', AMP, False, dict(type='OptimWrapper'), 'float32; --amp gives'),
        ('mps', AMP, True, dict(type='OptimWrapper'), 'float32'),
        ('cuda', AMP, True, AMP, None),
        ('cuda', AMP, False, AMP, None),
        ('cuda', dict(type=BFLOAT16), True, dict(type=BFLOAT16), None),
        ('cpu', dict(type=BFLOAT16), False, dict(type=BFLOAT16), None),
        (
            'cuda',
            dict(type=OptimWrapper),
            True,
            dict(type='AmpOptimWrapper', loss_scale='dynamic'),
            None,
        ),
    ],
)
def test_the_precision_fits_flag_config_and_machine(
    monkeypatch, device, wrapper, flag, chosen, note
):
    found, said = choose(monkeypatch, device, wrapper, flag)
    assert found == chosen
    assert said is None if note is None else note in said


def test_other_wrappers_have_no_mixed_precision(monkeypatch):
    with pytest.raises(InputError, match="optim_wrapper.type='ApexOptimWrapper'"):
        choose(monkeypatch, 'cpu', dict(type='ApexOptimWrapper'), True)
    kept, _ = choose(monkeypatch, 'cpu', dict(type='ApexOptimWrapper'), False)
    assert kept == dict(type='ApexOptimWrapper')


def test_training_steps_are_under_bfloat16_and_update_float32_weights():
    model = torch.nn.Linear(4, 4)
    before = model.weight.clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    wrapper = OPTIM_WRAPPERS.build(dict(type=BFLOAT16, optimizer=optimizer))
    assert isinstance(wrapper, BFloat16OptimWrapper)
    with wrapper.optim_context(model):
        out = model(torch.ones(2, 4))
    assert out.dtype == torch.bfloat16
    assert model(torch.ones(2, 4)).dtype == torch.float32
    wrapper.update_params(out.float().sum())
    assert model.weight.dtype == torch.float32
    assert not torch.equal(model.weight, before)


def test_optimizer_states_of_amp_training_can_be_resumed_without_it():
    model = torch.nn.Linear(1, 1)
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.5))
    state = {**wrapper.state_dict(), 'loss_scaler': dict(scale=512.0)}
    resumed = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1))
    resumed.load_state_dict(state)
    assert resumed.get_lr()['lr'] == [0.5]
