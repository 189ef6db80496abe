"""Checks of the checkpoints a run starts from, before it starts."""

import pytest
import torch
from mmdet.models import DetTTAModel
from mmengine.config import Config
from torch import nn

from lfi_mmdet.engine.preflight import InputError, check_start, check_weights


# -- checkpoints to start from -------------------------------------------------------
def start(tmp_path, **changes):
    return Config(dict(work_dir=str(tmp_path), model=dict(), **changes))


def test_a_missing_checkpoint_is_named_beside_those_there_are(tmp_path):
    (tmp_path / 'epoch_3.pth').write_text('x')
    path = str(tmp_path / 'epoch_4.pth')
    pattern = r'{}=.*epoch_4\.pth: no such file; checkpoints in .*: epoch_3\.pth$'
    with pytest.raises(InputError, match=pattern.format('load_from')):
        check_start(start(tmp_path, load_from=path))
    with pytest.raises(InputError, match=pattern.format('resume')):
        check_start(start(tmp_path, load_from=path, resume=True))
    with pytest.raises(InputError, match='is a folder; checkpoints in .*: epoch_3'):
        check_start(start(tmp_path, load_from=str(tmp_path)))


@pytest.mark.parametrize('content', ['', '/elsewhere/epoch_3.pth'])
def test_a_last_checkpoint_that_leads_nowhere_is_refused(tmp_path, content):
    (tmp_path / 'last_checkpoint').write_text(content)
    with pytest.raises(InputError, match=f'last_checkpoint .*{content}.*: none$'):
        check_start(start(tmp_path, resume=True))
    check_start(start(tmp_path))


def test_resuming_without_any_checkpoint_is_a_new_start(tmp_path):
    check_start(start(tmp_path, resume=True))


def test_files_that_the_model_starts_from_are_looked_for(tmp_path):
    url = 'https://host/vit.pth'
    check_start(start(tmp_path, load_from=url))
    cfg = start(tmp_path)
    cfg.model = dict(backbone=dict(init_cfg=dict(type='Pretrained', checkpoint=url)))
    check_start(cfg)
    cfg.model.backbone.init_cfg.checkpoint = 'no.pth'
    with pytest.raises(
        InputError, match=r'model\.backbone\.init_cfg\.checkpoint=no\.pth'
    ):
        check_start(cfg)
    cfg.model = dict(heads=[dict(text_embeddings='no.npy')])
    with pytest.raises(InputError, match=r'model\.heads\.0\.text_embeddings=no\.npy'):
        check_start(cfg)


# -- weights -------------------------------------------------------------------------
class Head(nn.Module):
    def __init__(self, num_classes, dims):
        super().__init__()
        self.num_classes = num_classes
        self.fc = nn.Linear(dims, num_classes)


class Net(nn.Module):
    def __init__(self, num_classes=3, dims=4, depth=2):
        super().__init__()
        self.backbone = nn.ModuleList(nn.Linear(dims, dims) for _ in range(depth))
        self.backbone.queries = nn.Parameter(torch.zeros(num_classes, dims))
        self.head = Head(num_classes, dims)

    def test_step(self, data):
        """What a model under test-time augmentation must have."""


def save(tmp_path, model, **extra):
    path = tmp_path / 'x.pth'
    torch.save(dict(state_dict={**model.state_dict(), **extra}), path)
    return str(path)


@pytest.mark.parametrize('purpose', ['start', 'resume', 'test'])
def test_the_checkpoint_of_the_same_model_fits(tmp_path, purpose):
    # what a distiller left is no part of the model to test
    extra = {'distiller.weight': torch.zeros(1)}
    check_weights(Net(), save(tmp_path, Net(), **extra), purpose)


def test_a_bare_state_dict_with_the_names_of_a_wrapped_model_fits(tmp_path):
    state = {f'module.{key}': value for key, value in Net().state_dict().items()}
    torch.save(state, tmp_path / 'x.pth')
    check_weights(Net(), str(tmp_path / 'x.pth'), 'test')


def test_a_wrapped_model_is_checked_by_its_own_names(tmp_path):
    path = save(tmp_path, Net())
    check_weights(DetTTAModel(module=Net()), path, 'test')
    with pytest.raises(InputError, match='another size'):
        check_weights(DetTTAModel(module=Net(dims=8)), path, 'test')


@pytest.mark.parametrize('purpose', ['start', 'resume', 'test'])
def test_a_checkpoint_of_another_width_is_refused_with_both_shapes(tmp_path, purpose):
    path = save(tmp_path, Net(dims=8))
    with pytest.raises(InputError) as caught:
        check_weights(Net(), path, purpose)
    text = f'checkpoint {path} is for a model of another size: '
    assert str(caught.value).startswith(text)
    assert 'backbone.0.weight has shape (8, 8), the model needs (4, 4)' in str(
        caught.value
    )


@pytest.mark.parametrize('purpose', ['resume', 'test'])
@pytest.mark.parametrize(
    'depth, message',
    [
        (1, r'backbone\.1\.weight is not in the ch'),
        (3, r'2\.weight is not in the model'),
    ],
)
def test_a_checkpoint_of_another_depth_is_refused(tmp_path, purpose, depth, message):
    path = save(tmp_path, Net(depth=depth))
    with pytest.raises(InputError, match=f'is for another model: .*{message}'):
        check_weights(Net(), path, purpose)


def test_a_training_may_start_from_less_but_not_from_nothing(tmp_path):
    check_weights(Net(), save(tmp_path, Net(depth=1)), 'start')
    path = save(tmp_path, nn.Linear(2, 2))
    with pytest.raises(
        InputError, match=r"no weight of this model; .*'bias', 'weight'"
    ):
        check_weights(Net(), path, 'start')


def test_a_training_may_start_from_other_classes(tmp_path):
    path = save(tmp_path, Net(num_classes=80))
    check_weights(Net(), path, 'start')
    for purpose in ('resume', 'test'):
        with pytest.raises(
            InputError, match=r'queries has shape \(80, 4\), .*\(3, 4\)'
        ):
            check_weights(Net(), path, purpose)


def test_a_file_that_is_no_checkpoint_is_named(tmp_path):
    path = save(tmp_path, Net())
    with open(path, 'r+b') as file:
        file.truncate(500)
    with pytest.raises(
        InputError, match=r'checkpoint .*x\.pth cannot be read; it is tr'
    ):
        check_weights(Net(), path, 'test')


def test_an_unknown_purpose_is_refused(tmp_path):
    with pytest.raises(ValueError, match="purpose='use'"):
        check_weights(Net(), save(tmp_path, Net()), 'use')
