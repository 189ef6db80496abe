"""A teacher is built alone, once per reading, and asked about every class."""

import pytest
import torch
from mmdet.registry import MODELS

from lfi_mmdet.engine.preflight import InputError
from lfi_mmdet.evaluation import interaction_dataloader
from lfi_mmdet.evaluation.teacher_trial import (
    AS_CONFIGURED,
    TeacherTrial,
    accepted_arguments,
    check_masks,
    readings_of,
    teacher_class,
    trial_config,
)
from lfi_mmdet.models.teachers import FrozenTeacher, GroundTruthTeacher
from tests.tiny import CLASSES


class Reader(FrozenTeacher):
    """Takes a reading and what FrozenTeacher takes."""

    READINGS = ('similarity', 'gradient')
    num_layers = 1

    def __init__(
        self, layers='all', heads='mean', texts='classes', max_free=0, **common
    ):
        super().__init__(view=dict(size=8), **common)

    def encode_texts(self, class_names):
        pass

    def interact(self, images, present):
        raise NotImplementedError


class Narrow(Reader):
    """Hands nothing on."""

    def __init__(self, size=4):
        super().__init__()


@pytest.fixture(autouse=True)
def registered():
    for cls in (Reader, Narrow):
        MODELS.register_module(module=cls, force=True)
    yield
    for cls in (Reader, Narrow):
        MODELS.module_dict.pop(cls.__name__)


def test_arguments_are_followed_to_where_they_are_handed_on():
    taken = accepted_arguments(Reader)
    assert {'layers', 'reading', 'present'} <= taken
    assert not taken & {'self', 'common', 'args', 'kwargs'}
    assert accepted_arguments(Narrow) == {'size'}


def test_a_teacher_without_such_an_argument_has_one_reading():
    assert readings_of(Reader) == ('similarity', 'gradient')
    assert readings_of(Narrow) == (AS_CONFIGURED,)


def test_the_teacher_is_asked_about_all_classes_in_the_reading():
    teacher = dict(type='Reader', present='teacher', layers=[1], texts='captions')
    found = trial_config(dict(teacher, max_free=4), 'gradient', heads='keep')
    assert found == dict(
        type='Reader',
        present='all',
        layers='all',
        texts='classes',
        max_free=0,
        reading='gradient',
        heads='keep',
    )
    assert teacher['present'] == 'teacher', 'the config itself is left alone'
    assert 'heads' not in trial_config(teacher, 'gradient')
    assert trial_config(teacher, 'gradient', layers=[2])['layers'] == [2]


def test_each_of_several_teachers_is_asked_about_all_classes():
    inner = dict(type='Reader', reading='gradient')
    cfg = dict(type='EnsembleTeacher', teachers=[inner, dict(type='Narrow')])
    found = trial_config(cfg, AS_CONFIGURED)
    assert found['teachers'] == [dict(inner, present='all'), dict(type='Narrow')]
    assert 'present' not in found and 'present' not in inner


@pytest.mark.parametrize(
    'teacher, options, message',
    [
        ('Reader', dict(reading='value'), r"no reading 'value'.*\['similarity', 'grad"),
        ('Narrow', dict(reading='gradient'), "no reading 'gradient'.*as configured"),
        ('Narrow', dict(heads='keep'), 'Narrow takes no heads; leave out --heads'),
        ('Narrow', dict(layers=[1]), 'Narrow takes no layers; leave out --layers'),
    ],
)
def test_what_a_teacher_cannot_do_is_refused(teacher, options, message):
    options = dict(reading=AS_CONFIGURED) | options
    with pytest.raises(InputError, match=message):
        trial_config(dict(type=teacher), **options)


def test_what_is_no_teacher_is_refused():
    with pytest.raises(KeyError, match="'GroundTruthTeacher'"):
        teacher_class(dict(type='GroundTrothTeacher'))
    with pytest.raises(TypeError, match='is not a FrozenTeacher'):
        teacher_class(dict(type='ResNet'))
    assert teacher_class(dict(type=GroundTruthTeacher)) is GroundTruthTeacher


def test_a_trial_answers_for_all_classes_with_scores(tiny_config):
    loader = interaction_dataloader(tiny_config, max_images=3, batch_size=2)
    cfg = trial_config(tiny_config.model.teacher, AS_CONFIGURED)
    batches = list(TeacherTrial(tiny_config, cfg, CLASSES).run(loader))
    assert [len(batch.data_samples) for batch in batches] == [2, 1]
    for batch in batches:
        assert batch.targets.present.all() and batch.targets.texts is None
        assert batch.targets.maps.shape[1:] == (2, 3, 8, 8)
        assert batch.targets.scores.sum(1).tolist() == [2] * len(batch.data_samples)
        assert batch.inputs.dtype == torch.float32


def test_other_class_names_than_those_of_the_dataset_are_refused(tiny_config):
    teacher = dict(tiny_config.model.teacher, class_names=('red', 'green', 'pink'))
    with pytest.raises(InputError, match=r"differ .* in \['blue', 'pink'\]"):
        TeacherTrial(tiny_config, teacher, CLASSES)


def test_objects_without_masks_are_found_before_images_are_loaded():
    class Boxes:
        def __len__(self):
            return 2

        def get_data_info(self, index):
            whole, bare = dict(mask=[[0, 0, 1, 1, 1, 0]]), dict(bbox=[0, 0, 1, 1])
            return dict(img_path=f'{index}.png', instances=[whole, bare][: index + 1])

    check_masks(Boxes(), 1)
    with pytest.raises(InputError, match=r'1\.png has objects without masks'):
        check_masks(Boxes(), 5)


def test_texts_that_are_no_classes_are_not_asked_about():
    inner = dict(type='Reader', more_texts=['sea'])
    cfg = dict(type='Reader', more_texts=['sky'], teacher=inner)
    found = trial_config(cfg, 'gradient')
    assert 'more_texts' not in found and 'more_texts' not in found['teacher']
    assert cfg['more_texts'] == ['sky'], 'the config itself is left alone'
