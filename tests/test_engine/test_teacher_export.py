"""A teacher trained from captions, written with the record of where it is from."""

import hashlib
import json

import pytest
import torch
import yaml

from lfi_mmdet.engine.preflight import InputError
from lfi_mmdet.engine.teacher_export import export_teacher
from tools.publish_teacher import read_gates

CONFIG = """
model = dict(type='CaptionPretrainer', model='coca_tiny', nouns=('circle', 'star'))
train_dataloader = dict(batch_size=4, dataset=dict(type='CaptionScenes', length=8))
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=0.001))
"""


@pytest.fixture
def files(tmp_path):
    """A checkpoint of a training, and what check_teacher wrote of it."""
    weights = {
        'network.logit_scale': torch.tensor(10.0).log(),
        'network.visual.proj': torch.randn(4, 4),
        'network.text.ids': torch.arange(3),
        'other.weight': torch.zeros(1),
    }
    checkpoint = tmp_path / 'iter_2.pth'
    meta = dict(iter=2, seed=7, cfg=CONFIG)
    torch.save(dict(state_dict=weights, meta=meta), checkpoint)
    gate = tmp_path / 'teacher.json'
    value = dict(value=0.91234, low=0.9, high=0.93)
    layer = dict(layer='4', reading='similarity', presence_auc=value, pointing=None)
    gate.write_text(json.dumps(dict(num_images=300, layers=[layer])))
    return checkpoint, gate, weights


def test_only_the_network_is_written_in_half_precision(files, tmp_path):
    checkpoint, gate, weights = files
    out = tmp_path / 'teacher.pt'
    export_teacher(str(checkpoint), out, gate, {})
    state = torch.load(out)
    assert set(state) == {'logit_scale', 'visual.proj', 'text.ids'}
    assert state['visual.proj'].dtype == torch.float16
    assert torch.equal(state['visual.proj'], weights['network.visual.proj'].half())
    assert state['text.ids'].tolist() == [0, 1, 2]


def test_the_record_says_where_the_weights_are_from(files, tmp_path):
    checkpoint, gate, _ = files
    out = tmp_path / 'teacher.pt'
    record = dict(commit='abc', versions=dict(torch=torch.__version__))
    export_teacher(str(checkpoint), out, gate, record)
    told = yaml.safe_load(out.with_suffix('.yaml').read_text())
    assert told['sha256'] == hashlib.sha256(out.read_bytes()).hexdigest()
    assert (told['iterations'], told['seed'], told['commit']) == (2, 7, 'abc')
    assert told['versions']['torch'] == str(torch.__version__)
    assert told['temperature'] == pytest.approx(0.1, abs=1e-3)
    assert told['trained_with']['data']['length'] == 8
    (layer,) = told['gate']['layers']
    assert layer['presence_auc'] == [0.9123, 0.9, 0.93]
    assert told['gate']['images'] == 300


def test_several_gates_are_told_by_their_names(files, tmp_path):
    checkpoint, gate, _ = files
    gates = read_gates([f'photo={gate}', f'line={gate}'])
    told = export_teacher(str(checkpoint), tmp_path / 'teacher.pt', gates, {})
    assert list(told['gate']) == ['photo', 'line']
    assert told['gate']['line']['images'] == 300
    assert read_gates([str(gate)]) == gate


@pytest.mark.parametrize('given', [['a.json', 'b.json'], ['x=a.json', 'x=b.json']])
def test_several_gates_need_names_of_their_own(given):
    with pytest.raises(InputError, match='--gate: .* is not NAME=FILE'):
        read_gates(given)


def test_a_broken_number_writes_nothing(files, tmp_path):
    checkpoint, gate, weights = files
    weights['network.visual.proj'][0, 0] = 1e6  # beyond half precision
    torch.save(dict(state_dict=weights, meta=dict(iter=2, cfg=CONFIG)), checkpoint)
    out = tmp_path / 'teacher.pt'
    with pytest.raises(InputError, match=r'visual\.proj'):
        export_teacher(str(checkpoint), out, gate, {})
    assert not out.exists()


def test_other_files_are_refused_by_name(files, tmp_path):
    checkpoint, gate, _ = files
    out = tmp_path / 'teacher.pt'
    foreign = tmp_path / 'detector.pth'
    torch.save(dict(state_dict={'backbone.w': torch.zeros(1)}, meta={}), foreign)
    with pytest.raises(InputError, match='CaptionPretrainer'):
        export_teacher(str(foreign), out, gate, {})
    with pytest.raises(InputError, match='check_teacher'):
        export_teacher(str(checkpoint), out, checkpoint, {})
    with pytest.raises(InputError, match=r'\.pt'):
        export_teacher(str(checkpoint), tmp_path / 'teacher.bin', gate, {})
    assert not list(tmp_path.glob('teacher.pt*'))
