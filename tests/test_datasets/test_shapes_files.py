"""The files that the generator writes, and how it behaves on disk."""

import importlib.util
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO

from lfi_mmdet.datasets.shapes import (
    SHAPE_CLASSES,
    SceneConfig,
    generate_dataset,
    sample_scene,
    writer,
)

ROOT = Path(__file__).parents[2]
SMALL = SceneConfig(size=64)
COUNTS = dict(train=40, val=4, unlabeled=3)


def file_bytes(folder):
    files = sorted(p for p in folder.rglob('*') if p.is_file())
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


@pytest.fixture(scope='module')
def dataset(tmp_path_factory):
    out = tmp_path_factory.mktemp('shapes') / 'made'
    assert generate_dataset(out, **COUNTS, seed=3, config=SMALL)
    return out


def load_coco(path, capsys):
    coco = COCO(str(path))
    capsys.readouterr()
    return coco


@pytest.mark.parametrize('workers', [1, 2])
def test_same_seed_gives_the_same_bytes_for_any_number_of_workers(
    dataset, tmp_path, workers
):
    out = tmp_path / 'again'
    generate_dataset(out, **COUNTS, seed=3, config=SMALL, workers=workers)
    assert file_bytes(out) == file_bytes(dataset)


def test_other_seeds_give_other_images(dataset, tmp_path):
    generate_dataset(tmp_path / 'other', train=4, val=0, unlabeled=0, seed=4)
    ours = {p.read_bytes() for p in (dataset / 'train').iterdir()}
    assert not ours & {p.read_bytes() for p in (tmp_path / 'other/train').iterdir()}


def test_images_without_labels_take_turns_with_domains(dataset, tmp_path):
    out, kinds = tmp_path / 'mixed', ['line', 'photo']
    arguments = dict(COUNTS, seed=3, config=SMALL)
    assert generate_dataset(out, **arguments, unlabeled_domains=kinds)
    mixed, plain = file_bytes(out), file_bytes(dataset)
    assert {name for name in plain if mixed[name] != plain[name]} == {
        'dataset.json',
        'annotations/captions_unlabeled.json',
        'unlabeled/000003000000.png',
        'unlabeled/000003000002.png',
    }
    # the same again, and not what has no such domains
    assert not generate_dataset(out, **arguments, unlabeled_domains=kinds)
    with pytest.raises(FileExistsError, match='unlabeled_domains .* None asked'):
        generate_dataset(out, **arguments)
    with pytest.raises(ValueError, match="unknown domain 'oil'"):
        generate_dataset(tmp_path / 'x', **arguments, unlabeled_domains=['oil'])
    with pytest.raises(ValueError, match="unlabeled_domains='line' is no list"):
        generate_dataset(tmp_path / 'x', **arguments, unlabeled_domains='line')


def test_splits_share_no_image(dataset):
    images = [p.read_bytes() for p in dataset.rglob('*.png')]
    assert len(images) == sum(COUNTS.values())
    assert len(set(images)) == len(images)


def test_an_image_does_not_depend_on_how_many_others_are_written(dataset, tmp_path):
    generate_dataset(
        tmp_path / 'few', train=2, val=1, seed=3, unlabeled=0, config=SMALL
    )
    few, many = file_bytes(tmp_path / 'few'), file_bytes(dataset)
    pngs = [name for name in few if name.endswith('.png')]
    assert len(pngs) == 3
    assert all(few[name] == many[name] for name in pngs)


@pytest.mark.parametrize('split', ['train', 'val'])
def test_annotations_agree_with_the_masks_they_decode_to(dataset, split, capsys):
    coco = load_coco(dataset / f'annotations/instances_{split}.json', capsys)
    names = {c['id']: c['name'] for c in coco.loadCats(coco.getCatIds())}
    assert len(coco.imgs) == COUNTS[split]
    for image in coco.imgs.values():
        index = image['id'] - min(coco.imgs)
        scene = sample_scene(3, split, index, SMALL)
        anns = coco.imgToAnns[image['id']]
        assert (dataset / split / image['file_name']).is_file()
        for ann, item in zip(anns, scene.objects, strict=True):
            mask = coco.annToMask(ann).astype(bool)
            assert np.array_equal(mask, scene.visible_mask(item))
            assert names[ann['category_id']] == scene.items[item].category
            assert ann['area'] == mask.sum()
            rows, columns = np.nonzero(mask)
            x, y = columns.min(), rows.min()
            assert ann['bbox'] == [
                x,
                y,
                columns.max() - x + 1,
                rows.max() - y + 1,
            ]
            assert ann['iscrowd'] == 0


def test_both_polygons_and_text_rle_are_written(dataset, capsys):
    coco = load_coco(dataset / 'annotations/instances_train.json', capsys)
    kinds = [ann['segmentation'] for ann in coco.anns.values()]
    assert any(isinstance(s, list) and len(s) == 1 for s in kinds)
    assert any(isinstance(s, dict) and isinstance(s['counts'], str) for s in kinds)


def test_categories_follow_the_chosen_classes(tmp_path, capsys):
    names = SHAPE_CLASSES[::-1][:9]
    config = SceneConfig(size=64, classes=names)
    generate_dataset(tmp_path / 'd', train=6, val=0, unlabeled=0, config=config)
    coco = load_coco(tmp_path / 'd/annotations/instances_train.json', capsys)
    assert [coco.cats[i]['name'] for i in sorted(coco.cats)] == list(names)


def test_unlabeled_images_have_captions_and_no_instances(dataset):
    annotations = dataset / 'annotations'
    assert not (annotations / 'instances_unlabeled.json').exists()
    info = json.loads((annotations / 'image_info_unlabeled.json').read_text())
    assert len(info['images']) == COUNTS['unlabeled']
    assert 'annotations' not in info and len(info['categories']) == 12
    told = json.loads((annotations / 'captions_unlabeled.json').read_text())
    assert {a['image_id'] for a in told['annotations']} == {
        image['id'] for image in info['images']
    }


def test_the_card_tells_what_was_written(dataset, capsys):
    card = json.loads((dataset / 'dataset.json').read_text())
    assert card['images'] == COUNTS
    assert card['seed'] == 3 and card['config']['size'] == 64
    for split in ('train', 'val'):
        coco = load_coco(dataset / f'annotations/instances_{split}.json', capsys)
        assert card['instances'][split] == len(coco.anns)
    assert card['instances']['unlabeled'] == 0


def test_every_image_has_its_number_of_captions(dataset):
    for split, count in COUNTS.items():
        path = dataset / f'annotations/captions_{split}.json'
        told = json.loads(path.read_text())['annotations']
        assert len(told) == 3 * count == len({a['id'] for a in told})


def stop_after(monkeypatch, count, stop):
    real, calls = writer.render, []

    def render_or_stop(scene):
        calls.append(scene)
        if len(calls) > count:
            stop()
        return real(scene)

    monkeypatch.setattr(writer, 'render', render_or_stop)


def interrupt():
    raise KeyboardInterrupt


def test_an_interrupted_run_leaves_nothing(tmp_path, monkeypatch):
    stop_after(monkeypatch, 10, interrupt)
    with pytest.raises(KeyboardInterrupt):
        generate_dataset(tmp_path / 'out', **COUNTS, config=SMALL)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform != 'linux', reason='the patch must reach workers')
def test_a_killed_worker_ends_the_run_and_leaves_nothing(tmp_path, monkeypatch):
    stop_after(monkeypatch, 10, lambda: os._exit(1))
    with pytest.raises(RuntimeError):
        generate_dataset(tmp_path / 'out', **COUNTS, config=SMALL, workers=2)
    assert not list(tmp_path.iterdir())


def test_an_interrupted_overwrite_keeps_the_old_dataset(tmp_path, monkeypatch):
    out = tmp_path / 'out'
    generate_dataset(out, train=2, val=0, unlabeled=0, config=SMALL)
    before = file_bytes(tmp_path)
    stop_after(monkeypatch, 1, interrupt)
    with pytest.raises(KeyboardInterrupt):
        generate_dataset(out, **COUNTS, config=SMALL, overwrite=True)
    assert file_bytes(tmp_path) == before


def test_the_same_dataset_is_not_made_again(dataset, monkeypatch):
    stop_after(monkeypatch, 0, interrupt)
    assert generate_dataset(dataset, **COUNTS, seed=3, config=SMALL) is False


def test_another_dataset_is_replaced_only_on_request(tmp_path):
    out = tmp_path / 'out'
    few = dict(train=2, val=0, unlabeled=0, config=SMALL)
    generate_dataset(out, **few, seed=1)
    with pytest.raises(FileExistsError, match='seed 1 there, 2 asked'):
        generate_dataset(out, **few, seed=2)
    (out / 'notes.txt').write_text('mine')
    with pytest.raises(FileExistsError, match='notes.txt'):
        generate_dataset(out, **few, seed=2, overwrite=True)
    (out / 'notes.txt').unlink()
    assert generate_dataset(out, **few, seed=2, overwrite=True)
    assert json.loads((out / 'dataset.json').read_text())['seed'] == 2
    assert list(tmp_path.iterdir()) == [out]


def test_a_folder_that_is_no_dataset_is_never_replaced(tmp_path):
    (tmp_path / 'thesis.tex').write_text('mine')
    with pytest.raises(FileExistsError, match='no shapes dataset'):
        generate_dataset(tmp_path, **COUNTS, overwrite=True)
    assert (tmp_path / 'thesis.tex').read_text() == 'mine'


@pytest.mark.parametrize(
    ('wrong', 'message'),
    [
        (dict(train=-1), 'train is -1'),
        (dict(train=0, val=0, unlabeled=0), 'nothing to write'),
        (dict(workers=0), 'workers is 0'),
        (dict(seed=-5), 'seed is -5'),
    ],
)
def test_bad_numbers_are_named(tmp_path, wrong, message):
    with pytest.raises(ValueError, match=message):
        generate_dataset(tmp_path / 'out', **wrong)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope='module')
def tool():
    path = ROOT / 'tools' / 'make_shapes.py'
    spec = importlib.util.spec_from_file_location('make_shapes', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_command_line_writes_what_the_package_writes(
    dataset, tmp_path, tool, capsys
):
    out = tmp_path / 'out'
    line = [str(out), '--seed', '3', '--size', '64', '--preview', '2']
    for split, count in COUNTS.items():
        line += [f'--{split}', str(count)]
    assert tool.main(line) == 0
    assert 'written' in capsys.readouterr().out
    found = file_bytes(out)
    preview = found.pop('preview.png')
    assert found == file_bytes(dataset)
    assert tool.main(line) == 0
    assert 'already there' in capsys.readouterr().out
    assert file_bytes(out) == found | {'preview.png': preview}


@pytest.mark.parametrize(
    ('line', 'message'),
    [
        (['--classes', '99'], 'argument --classes: 99 shape classes'),
        (['--classes', 'circle,blob'], "unknown shape class 'blob'; choose from"),
        (['--domain', 'oil'], "invalid choice: 'oil'"),
        (['--size', '20'], 'size is 20'),
        (['--train', '-1'], 'train is -1'),
        (['--preview', '-1'], 'argument --preview: -1'),
    ],
)
def test_the_command_line_names_bad_arguments(tmp_path, tool, capsys, line, message):
    with pytest.raises(SystemExit) as stopped:
        tool.main([str(tmp_path / 'out'), *line])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_interrupted_command_line_says_so(tmp_path, tool, capsys, monkeypatch):
    stop_after(monkeypatch, 1, interrupt)
    assert tool.main([str(tmp_path / 'out'), '--size', '64']) == 130
    assert 'interrupted' in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
