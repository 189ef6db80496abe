"""What the command line says about a variant is what is built."""

import pytest

from lfi_mmdet.engine.inference import forget_weights
from lfi_mmdet.engine.preflight import InputError
from lfi_mmdet.evaluation import Variant

DEFAULT = dict(config='lfi.py', measures=('parameters', 'inference'))


def test_a_name_alone_is_the_student_with_the_common_measures():
    variant = Variant.parse(['plain'], **DEFAULT)
    assert variant == Variant('plain', 'lfi.py', 'none', ('parameters', 'inference'))


def test_pairs_choose_targets_measures_and_settings():
    words = ['a', 'targets=cached', 'measure=loader,train_step', 'config=other.py']
    words += ['compile=backbone', 'model.backbone.out_layers=[1,2]', 'model.a.b=None']
    assert Variant.parse(words, **DEFAULT) == Variant(
        name='a',
        config='other.py',
        targets='cached',
        measures=('loader', 'train_step'),
        compile='backbone',
        options={'model.backbone.out_layers': [1, 2], 'model.a.b': None},
    )


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['targets=none'], "starts with its name, not with 'targets=none'"),
        (['a', 'targets=disk'], "variant a: targets='disk' is not known; choose from"),
        (['a', 'measure=time'], r"variant a: measure=time: \['time'\] are not known"),
        (['a', 'cached'], "variant a: 'cached' is not KEY=VALUE"),
        (['a', 'target=none'], "variant a: 'target' is neither of targets, config"),
        (['a', 'model.x=[1,2'], 'variant a: Imbalanced brackets'),
    ],
)
def test_what_does_not_fit_is_named(words, message):
    with pytest.raises(InputError, match=message):
        Variant.parse(words, **DEFAULT)


@pytest.fixture
def config_file(tiny_config):
    return tiny_config.filename


def test_the_student_alone_has_neither_teacher_nor_distiller(config_file):
    model = Variant('a', config_file).read_config(None, pretrained=False).model
    assert not model.teacher and not model.distiller
    with_teacher = Variant('b', config_file, 'online').read_config(None, False).model
    assert with_teacher.teacher.type == 'GroundTruthTeacher'


def test_options_of_a_variant_come_after_those_of_all(config_file):
    variant = Variant('a', config_file, options={'model.backbone.carry': False})
    options = {'model.backbone.carry': True, 'model.backbone.mlp_ratio': 3.0}
    backbone = variant.read_config(options, pretrained=False).model.backbone
    assert (backbone.carry, backbone.mlp_ratio) == (False, 3.0)


@pytest.mark.parametrize('targets', ['online', 'cached'])
def test_targets_need_a_teacher(config_file, targets):
    variant = Variant('a', config_file, targets, options={'model.teacher': None})
    with pytest.raises(InputError, match=f'variant a: targets={targets}, but in .*py'):
        variant.read_config(None, pretrained=False)


def test_no_weights_are_loaded_but_a_teachers_on_demand(config_file):
    pretrained = dict(type='Pretrained', checkpoint='https://nowhere')
    options = {
        'model.backbone.init_cfg': pretrained,
        'model.neck.init_cfg': dict(type='Xavier', layer='Conv2d'),
        'model.teacher.pretrained': 'laion2b',
    }
    variant = Variant('a', config_file, 'online', options=options)
    model = variant.read_config(None, pretrained=False).model
    assert model.backbone.init_cfg is None and model.neck.init_cfg.type == 'Xavier'
    assert model.teacher.pretrained is None
    model = variant.read_config(None, pretrained=True).model
    assert model.backbone.init_cfg is None
    assert model.teacher.pretrained == 'laion2b'


def test_weights_are_forgotten_in_every_part_of_a_list():
    cfg = dict(teachers=[dict(pretrained='a'), dict(inner=(dict(pretrained='b'),))])
    forget_weights(cfg, ('pretrained',))
    assert cfg == dict(
        teachers=[dict(pretrained=None), dict(inner=(dict(pretrained=None),))]
    )
