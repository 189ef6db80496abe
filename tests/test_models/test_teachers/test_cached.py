"""Targets that the data loader has read, in the place of a teacher."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmdet.registry import DATASETS, MODELS, TRANSFORMS
from mmdet.structures import DetDataSample
from mmengine.dataset import pseudo_collate

from lfi_mmdet.datasets.target_store import TARGETS_VERSION
from lfi_mmdet.engine.preflight import InputError
from lfi_mmdet.models.teachers import CachedTeacher, FrozenTeacher
from lfi_mmdet.registry import build_part
from tests.stores import some_record, write_store
from tests.test_models.test_no_synchronisation import watch
from tests.tiny import CLASSES, write_tiny_coco

LOAD = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
]
PACK = dict(type='PackInteractionInputs')
CROP = dict(type='RandomCrop', crop_size=(40, 40), allow_negative_crop=True)


@TRANSFORMS.register_module()
class QuietShift:
    """Moves pixels and keeps it to itself."""

    def __call__(self, results):
        results['img'] = np.roll(results['img'], 20, 1)[:, 20:]
        results['img_shape'] = results['img'].shape[:2]
        return results


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Images 1 to 4, of which image i shows classes i - 1 and i (modulo 3)."""
    root = tmp_path_factory.mktemp('cached')
    write_tiny_coco(root)
    pairs = [sorted(((i - 1) % 3, i % 3)) for i in range(1, 5)]
    records = {i: some_record(tuple(p), seed=i) for i, p in enumerate(pairs, 1)}
    write_store(root / 'store', records)
    write_store(root / 'few', {1: records[1], 9: records[2]})
    write_store(root / 'others', records, classes=['red', 'blue', 'green'])
    write_store(
        root / 'features',
        {i: some_record(tuple(p), channels=3, seed=i) for i, p in enumerate(pairs, 1)},
    )
    return root


def dataset_of(folder, *steps, store='store', pack=PACK, wrap=None, **load):
    load = dict(type='LoadCachedTargets', store=str(folder / store), **load)
    cfg = dict(
        type='CocoDataset',
        data_root=str(folder),
        ann_file='train.json',
        data_prefix=dict(img='train/'),
        metainfo=dict(classes=CLASSES),
        pipeline=[*LOAD, *steps, load, *([pack] if isinstance(pack, dict) else pack)],
    )
    return DATASETS.build(wrap(cfg) if wrap else cfg)


def teacher_of(folder, store='store', **options):
    return CachedTeacher(store=str(folder / store), **options)


def batch_of(dataset, *indices):
    preprocessor = MODELS.build(dict(type='DetDataPreprocessor', pad_size_divisor=32))
    batch = pseudo_collate([dataset[i] for i in indices])
    batch = preprocessor(batch, training=True)
    return batch['inputs'], batch['data_samples'], preprocessor


def ask(folder, *indices, **options):
    teacher, dataset = teacher_of(folder, **options), dataset_of(folder, **options)
    teacher.check_dataset(dataset)
    return teacher, batch_of(dataset, *indices)


# -- the targets of a batch ------------------------------------------------------------
def test_a_batch_gets_the_rows_of_its_images(folder):
    teacher, batch = ask(folder, 0, 2)
    targets = teacher(*batch)
    assert targets.texts.tolist() == [[0, 1], [0, 2]]
    assert targets.present.tolist() == [[True, True], [True, True]]
    for i, img_id in enumerate((1, 3)):
        record = some_record((0, 1), seed=img_id)
        np.testing.assert_allclose(targets.maps[i], record.maps, rtol=2e-3, atol=1e-6)
        np.testing.assert_allclose(targets.relations[i], record.relations, atol=1e-3)
    assert targets.features is None and targets.scores is None
    assert targets.maps.dtype == targets.relations.dtype == torch.float32


def test_images_with_fewer_texts_are_filled_up(folder):
    teacher, (inputs, samples, preprocessor) = ask(folder, 0, 1, 2)
    samples[1].interactions = shorten(samples[1].interactions, 1)
    samples[2].interactions = shorten(samples[2].interactions, 0)
    targets = teacher(inputs, samples, preprocessor)
    assert targets.present.tolist() == [[True, True], [True, False], [False, False]]
    assert targets.texts[0].tolist() == [0, 1] and targets.texts[1, 0] == 1
    torch.testing.assert_close(targets.maps.sum((-2, -1)), torch.ones(3, 2, 2))
    assert torch.isfinite(targets.relations).all()
    alone = teacher(inputs[2:], samples[2:], preprocessor)
    assert alone.maps.shape == (1, 2, 1, 4, 6) and not alone.present.any()


def shorten(targets, count):
    short = targets.clone()
    short.texts, short.maps = targets.texts[:count], targets.maps[:, :count]
    short.relations = targets.relations[:, :count, :count]
    return short


def test_rows_can_be_asked_for_by_text(folder):
    teacher, batch = ask(folder, 0, 1)
    found, targets = teacher(*batch), teacher(*batch, compact=False)
    assert targets.texts is None and targets.maps.shape == (2, 2, 3, 4, 6)
    assert targets.present.tolist() == [[True, True, False], [False, True, True]]
    torch.testing.assert_close(targets.maps[1, :, 1:], found.maps[1])
    torch.testing.assert_close(targets.relations[1, :, 1:, 1:], found.relations[1])


def test_features_are_handed_on(folder):
    teacher, batch = ask(folder, 0, 1, store='features')
    targets = teacher(*batch)
    assert teacher.feature_dims == 3 and teacher.has_relations
    assert not teacher.has_mass
    assert targets.features.shape == (2, 2, 2, 3) and targets.relations is None


def test_nothing_waits_for_the_device(folder):
    teacher, batch = ask(folder, 0, 1)
    with watch():
        teacher(*batch)


def test_what_the_teacher_says_about_itself(folder):
    teacher = teacher_of(folder)
    assert isinstance(teacher, FrozenTeacher) and teacher.network is None
    assert (teacher.num_layers, teacher.num_texts) == (2, 3)
    assert teacher.layer_names == ['0', '1'] and teacher.class_names == CLASSES
    assert teacher.feature_dims is None and teacher.has_relations
    assert teacher.weights_hash() == '0123456789abcdef' * 4
    teacher.verify()
    with pytest.raises(TypeError, match='no network'):
        teacher.interact(torch.zeros(1, 3, 8, 8), None)


@pytest.mark.parametrize('wrapped', [False, True])
def test_further_texts_are_those_of_the_stored_teacher(folder, wrapped):
    cfg = dict(type='CoCaTeacher', model='coca', more_texts=['sky'], present='all')
    cfg = dict(type='EnsembleTeacher', teachers=[cfg, cfg]) if wrapped else cfg
    records = {i: some_record((0, 1, 2, 3), seed=i) for i in range(1, 5)}
    name = f'sky-{wrapped}'
    write_store(folder / name, records, teacher=cfg, num_texts=4)
    teacher, batch = ask(folder, 0, 2, store=name)
    assert teacher.class_names == CLASSES and teacher.more_texts == ('sky',)
    assert teacher.num_texts == 4
    assert teacher(*batch, compact=False).maps.shape[2] == 4


def test_a_config_builds_it(folder):
    cfg = dict(type='CachedTeacher', store=str(folder / 'store'))
    teacher = build_part(cfg, FrozenTeacher, 'model.teacher')
    assert type(teacher) is CachedTeacher


# -- whose targets they are ------------------------------------------------------------
def test_the_config_of_the_teacher_has_to_be_that_of_the_store(folder, tmp_path):
    made = dict(type='CLIPTeacher', model='ViT-B-16')
    store = write_store(tmp_path / 'clip', {1: some_record()}, teacher=made)
    CachedTeacher(store, teacher=dict(made, mode='value', cache_dir='elsewhere'))
    CachedTeacher(store, teacher=dict(type='CachedTeacher', store='x', teacher=made))
    message = (
        r'model\.teacher: .*clip holds targets of another teacher: teacher\.layers: '
        r"left at its default in the store, 'all' here; "
        r"teacher\.model: 'ViT-B-16' in the store, 'ViT-L-14' here\. Make a store"
    )
    with pytest.raises(InputError, match=message):
        CachedTeacher(store, teacher=dict(made, model='ViT-L-14', layers='all'))


@pytest.mark.parametrize(
    'digits, message',
    [
        ('0123456789abcdef', None),
        ('0123456', 'at least 8 digits'),
        ('0123456789abcdee', 'weights: sha256 0123456789abcdef.* in the store'),
    ],
)
def test_the_weights_can_be_pinned(folder, digits, message):
    if message is None:
        assert teacher_of(folder, weights_sha256=digits)
        return
    with pytest.raises(InputError, match=message):
        teacher_of(folder, weights_sha256=digits)


@pytest.mark.parametrize(
    'changes, message',
    [
        (dict(targets_version=TARGETS_VERSION + 1), 'TARGETS_VERSION'),
        (dict(classes=None), 'does not say its classes'),
    ],
)
def test_a_stale_store_is_refused_with_the_reason(tmp_path, changes, message):
    store = write_store(tmp_path / 'store', {1: some_record()}, **changes)
    with pytest.raises(InputError, match=message):
        CachedTeacher(store)


def test_a_folder_without_a_store_is_named(tmp_path):
    with pytest.raises(InputError, match='no store of targets.*cache_teacher.py'):
        CachedTeacher(str(tmp_path / 'none'))


# -- whether pixels and targets stay together ------------------------------------------
def repeated(cfg):
    return dict(type='RepeatDataset', times=2, dataset=cfg)


def joined(cfg):
    balanced = dict(type='ClassBalancedDataset', oversample_thr=0.1, dataset=cfg)
    return dict(type='ConcatDataset', datasets=[cfg, balanced])


@pytest.mark.parametrize('wrap', [None, repeated, joined])
def test_datasets_and_those_inside_of_others_are_checked(folder, wrap):
    teacher, dataset = teacher_of(folder), dataset_of(folder, CROP, wrap=wrap)
    batch = batch_of(dataset, 0, len(dataset) - 1)
    with pytest.raises(InputError, match=r'train/0\.png comes .* not checked'):
        teacher(*batch)
    teacher.check_dataset(dataset)
    assert teacher(*batch).maps.shape[:2] == (2, 2)
    # a pipeline that a hook puts in later
    with pytest.raises(InputError, match='not checked.*PipelineSwitchHook'):
        teacher(*batch_of(dataset_of(folder), 0))


REFUSED = {
    'nothing is loaded': (
        dict(pack=[dict(type='PackDetInputs')], drop=True),
        r"pipeline has no LoadCachedTargets.*dict\(type='PackInteractionInputs'\)",
    ),
    'loaded twice': (
        dict(steps=[dict(type='LoadCachedTargets', store='store')]),
        'has 2 LoadCachedTargets',
    ),
    'another store': (
        dict(store='others'),
        r"LoadCachedTargets\.store='.*others', but model\.teacher\.store='.*store'",
    ),
    'a silent transform': (
        dict(steps=[CROP, dict(type='QuietShift')]),
        r'pipeline\.3: QuietShift \(.*\) is not known',
    ),
    'a silent transform behind': (
        dict(pack=[dict(type='QuietShift'), PACK]),
        r'pipeline\.3: QuietShift \(.*\) is not known',
    ),
    'a known one behind': (
        dict(pack=[dict(type='RandomFlip', prob=0.5), PACK]),
        r'pipeline\.3: RandomFlip .*has to stand before LoadCachedTargets',
    ),
    'padding behind': (
        dict(pack=[dict(type='Pad', size_divisor=32), PACK]),
        r'pipeline\.3: Pad .*has to stand before LoadCachedTargets',
    ),
    'another packing': (
        dict(pack=dict(type='PackDetInputs')),
        r"nothing packs the targets; write dict\(type='PackInteractionInputs'\)",
    ),
    'several images in one': (
        dict(
            wrap=lambda cfg: dict(
                type='MultiImageMixDataset',
                dataset=cfg,
                pipeline=[dict(type='Mosaic', img_scale=(64, 64))],
            )
        ),
        r'train_dataloader\.dataset: MultiImageMixDataset changes images',
    ),
}


@pytest.mark.parametrize('case', REFUSED)
def test_pipelines_that_could_drift_are_refused_by_name(folder, case):
    options, message = REFUSED[case]
    options = dict(options)
    drop = options.pop('drop', False)
    dataset = dataset_of(folder, *options.pop('steps', ()), **options)
    if drop:
        del dataset.pipeline.transforms[2]
    with pytest.raises(InputError, match=message):
        teacher_of(folder).check_dataset(dataset)


def test_the_refusal_names_the_dataset_inside_of_others(folder):
    def wrap(cfg):
        bad = dict(cfg, pipeline=[*cfg['pipeline'][:2], dict(type='PackDetInputs')])
        return dict(type='ConcatDataset', datasets=[cfg, repeated(bad)])

    with pytest.raises(
        InputError, match=r'dataset\.datasets\.1\.dataset\.pipeline has no LoadCached'
    ):
        teacher_of(folder).check_dataset(dataset_of(folder, wrap=wrap))


def test_classes_have_to_be_those_of_the_store(folder):
    dataset = dataset_of(folder, store='others')
    with pytest.raises(
        InputError,
        match=r"metainfo\.classes .*others: class 1: 'blue' in the store, 'green' here",
    ):
        teacher_of(folder, store='others').check_dataset(dataset)


def test_images_the_store_has_not_are_named(folder):
    with pytest.raises(
        InputError, match=r'few has no targets of 3 of the 4 images \(ids 2, 3, 4\)'
    ):
        teacher_of(folder, store='few').check_dataset(dataset_of(folder, store='few'))


def test_a_rule_the_store_cannot_tell_is_refused_before_the_training(folder):
    with pytest.raises(InputError, match="present='teacher' cannot be told"):
        teacher_of(folder).check_dataset(dataset_of(folder, present='teacher'))


def test_a_sample_without_targets_is_an_error(folder):
    sample = DetDataSample(metainfo=dict(img_path='a.jpg'))
    with pytest.raises(InputError, match=r'a\.jpg has no cached targets.*LoadCached'):
        teacher_of(folder)(torch.zeros(1, 3, 8, 8), [sample], None)


@pytest.mark.parametrize(
    'steps, lie, message',
    [
        ([], dict(cut=20.0), 'lacks 20.0'),
        ([CROP], dict(beyond=20.0), 'extends 20.0 pixels beyond'),
        ([CROP], dict(cut=20.0), None),
        ([dict(type='Pad', size_divisor=32)], dict(beyond=20.0), None),
        ([dict(type='Pad', size_divisor=32)], dict(cut=20.0), 'lacks 20.0'),
        ([dict(type='Rotate')], dict(beyond=20.0, cut=20.0), None),
    ],
)
def test_images_that_are_not_what_was_reported_are_refused(folder, steps, lie, message):
    teacher, dataset = teacher_of(folder), dataset_of(folder, *steps)
    teacher.check_dataset(dataset)
    inputs, samples, preprocessor = batch_of(dataset, 1)
    samples[0].interactions.set_metainfo({**dict(beyond=0.0, cut=0.0), **lie})
    if message is None:
        teacher(inputs, samples, preprocessor)
        return
    with pytest.raises(InputError, match=rf'1\.png.*{message}'):
        teacher(inputs, samples, preprocessor)


def test_a_matrix_that_lies_is_found_out(folder):
    """A transform that a user vouches for, but that does not do what it should."""
    dataset = dataset_of(folder, dict(type='QuietShift'), allowed=('QuietShift',))
    teacher_of(folder).check_dataset(dataset)
    with pytest.raises(InputError, match=r'cropped or resized from \(64, 64\)'):
        dataset[0]


def test_a_preprocessor_that_moves_pixels_is_refused(folder):
    teacher, (inputs, samples, preprocessor) = ask(folder, 0)
    preprocessor.batch_augments = [
        MODELS.build(dict(type='BatchFixedSizePad', size=(96, 96)))
    ]
    teacher(inputs, samples, preprocessor)
    preprocessor.batch_augments.append(SimpleNamespace())
    with pytest.raises(InputError, match=r'batch_augments: SimpleNamespace'):
        teacher(inputs, samples, preprocessor)


def test_the_message_says_what_to_write(folder):
    with pytest.raises(InputError) as error:
        dataset = dataset_of(folder)
        del dataset.pipeline.transforms[2]
        teacher_of(folder).check_dataset(dataset)
    (store,) = re.findall("store='(.*?)'", str(error.value))
    assert store == str(folder / 'store')
