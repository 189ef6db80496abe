"""Checkpoints that mmengine writes load under torch's safe loading."""

import os
from pickle import UnpicklingError

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.model import BaseModel
from mmengine.runner import Runner, load_checkpoint, save_checkpoint
from mmengine.utils import digit_version
from torch import nn

from lfi_mmdet.compat import checkpoints, setup

setup()


class ToyModel(BaseModel):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 1)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        inputs = torch.stack(list(inputs))
        if mode == 'loss':
            return dict(loss=(self.linear(inputs) - 1).square().mean())
        return [inputs]


class ToyMetric(BaseMetric):
    default_prefix = 'toy'

    def process(self, data_batch, data_samples):
        self.results.append(1)

    def compute_metrics(self, results):
        # evaluators commonly return numpy scalars
        return dict(score=np.float32(len(results)))


class ToyDataset(torch.utils.data.Dataset):
    # from a config, the inner one arrives as a ConfigDict
    metainfo = dict(
        classes=('cat', 'dog'),
        palette=np.array([[1, 2, 3], [4, 5, 6]], dtype=np.uint8),
        source=ConfigDict(name='toy', sizes=[1, 2]),
    )

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return dict(inputs=torch.tensor([1.0, index]))


def build_runner(work_dir, name, **kwargs):
    loader = dict(
        batch_size=2, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False)
    )
    return Runner(
        model=ToyModel(),
        work_dir=str(work_dir),
        experiment_name=name,
        train_dataloader=dict(loader, dataset=ToyDataset()),
        val_dataloader=dict(loader, dataset=ToyDataset()),
        val_evaluator=Evaluator(ToyMetric()),
        val_cfg=dict(),
        train_cfg=dict(by_epoch=True, max_epochs=3),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9)),
        param_scheduler=[
            dict(type='OneCycleLR', eta_max=0.1, total_steps=6, by_epoch=False),
            dict(type='LinearLR', start_factor=0.1, end=2),
        ],
        default_hooks=dict(
            checkpoint=dict(
                type='CheckpointHook', interval=1, save_best='toy/score', rule='greater'
            )
        ),
        custom_hooks=[dict(type='EMAHook')],
        log_level='ERROR',
        **kwargs,
    )


def test_a_runner_resumes_from_its_own_checkpoint(tmp_path):
    whole = build_runner(tmp_path, 'whole')
    whole.train()

    resumed = build_runner(
        tmp_path, 'resumed', load_from=str(tmp_path / 'epoch_2.pth'), resume=True
    )
    resumed.train()
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name
    histories = [
        runner.message_hub.get_scalar('train/loss').data[0]
        for runner in (whole, resumed)
    ]
    # the losses of the first two epochs come from the file
    assert len(histories[0]) == 6
    assert np.array_equal(*histories)
    assert resumed.message_hub.get_info('best_score') == 2.0


def test_every_part_of_a_runners_checkpoint_passes_safe_loading(tmp_path):
    build_runner(tmp_path, 'parts').train()
    checkpoint = torch.load(tmp_path / 'epoch_3.pth', weights_only=True)
    assert {'message_hub', 'optimizer', 'param_schedulers', 'ema_state_dict'} < set(
        checkpoint
    )
    meta = checkpoint['meta']['dataset_meta']
    assert meta['source'] == ToyDataset.metainfo['source']
    assert np.array_equal(meta['palette'], ToyDataset.metainfo['palette'])


@pytest.fixture
def hub():
    hub = MessageHub('test_checkpoints')
    hub.update_scalar('train/loss', 0.5)
    hub.update_scalar('train/loss', np.float32(0.25))
    hub.update_info('best', np.float64(0.75))
    hub.update_info('counts', np.arange(3))
    hub.update_info('flags', np.array([True, False]))
    hub.update_info('names', np.array(['cat', 'dog']))
    return hub


def assert_same(state, hub):
    loss = state['log_scalars']['train/loss']
    assert isinstance(loss, HistoryBuffer)
    assert loss.mean() == hub.get_scalar('train/loss').mean() == 0.375
    for name in ('best', 'counts', 'flags', 'names'):
        expected, given = hub.get_info(name), state['runtime_info'][name]
        assert np.array_equal(given, expected)
        assert type(given) is type(expected) and given.dtype == expected.dtype


def test_mmengines_loader_reads_a_history_and_numpy_values(tmp_path, hub):
    model = nn.Linear(2, 1)
    path = str(tmp_path / 'history.pth')
    save_checkpoint(
        dict(state_dict=model.state_dict(), message_hub=hub.state_dict()), path
    )
    other = nn.Linear(2, 1)
    assert_same(load_checkpoint(other, path)['message_hub'], hub)
    assert torch.equal(other.weight, model.weight)


@pytest.mark.parametrize('package', [b'numpy.core', b'numpy._core'])
def test_files_written_with_numpy_1_and_2_load(tmp_path, hub, package):
    path = tmp_path / 'other_numpy.pth'
    # in the older file format the names stand as plain text
    torch.save(hub.state_dict(), path, _use_new_zipfile_serialization=False)
    written = path.read_bytes()
    for name in (b'numpy.core', b'numpy._core'):
        written = written.replace(b'c%s.multiarray\n' % name, b'c@.multiarray\n')
    assert b'c@.multiarray\n' in written
    path.write_bytes(written.replace(b'c@.multi', b'c%s.multi' % package))
    assert_same(torch.load(path, weights_only=True), hub)


class Reduced:
    """Pickled as a call of ``function`` with ``args``."""

    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ('harm', 'named'),
    [
        (Reduced(os.getcwd), 'getcwd|posix'),
        (Reduced(eval, '1'), 'eval'),
        (Reduced(getattr, HistoryBuffer, '__init__'), '__init__'),
        (Reduced(getattr, HistoryBuffer, '__subclasses__'), '__subclasses__'),
        (Reduced(getattr, torch.Tensor, 'numpy'), 'numpy'),
    ],
)
def test_other_functions_and_attributes_stay_refused(tmp_path, harm, named):
    path = tmp_path / 'harm.pth'
    torch.save(harm, path)
    with pytest.raises(UnpicklingError, match=named):
        torch.load(path, weights_only=True)


def test_a_torch_that_loads_everything_is_left_alone(monkeypatch):
    def refuse(_):
        raise AssertionError('add_safe_globals was called')

    monkeypatch.setattr(torch, '__version__', '2.5.1')
    monkeypatch.setattr(torch.serialization, 'add_safe_globals', refuse)
    checkpoints.register_safe_globals()


def test_registering_again_adds_nothing():
    if digit_version(torch.__version__) < digit_version('2.6.0'):
        pytest.skip('this torch loads everything')
    before = set(torch.serialization.get_safe_globals())
    checkpoints.register_safe_globals()
    assert set(torch.serialization.get_safe_globals()) == before


def test_an_address_that_cannot_be_fetched_is_not_called_damaged(monkeypatch):
    def fail(*args, **kwargs):
        raise OSError('no route to host')

    monkeypatch.setattr(checkpoints.CheckpointLoader, 'load_checkpoint', fail)
    with pytest.raises(ValueError, match=r'x\.pth cannot be fetched \(OSError: no ro'):
        checkpoints.load_checkpoint('https://host/x.pth')


def test_a_file_that_holds_no_dict_is_no_checkpoint(tmp_path):
    torch.save([1], tmp_path / 'x.pth')
    with pytest.raises(ValueError, match=r'x\.pth holds a list, not a dict'):
        checkpoints.load_checkpoint(str(tmp_path / 'x.pth'))
