"""A few images of a COCO file."""

import json

import pytest

from tests.tiny import write_tiny_coco
from tools.make_subset import main


@pytest.fixture
def annotations(tmp_path):
    return write_tiny_coco(tmp_path, num_images=6)


def run(annotations, out, *args):
    return main([str(annotations), str(out), *args])


def test_only_wanted_classes_and_their_images_are_kept(annotations, tmp_path):
    out = tmp_path / 'small' / 'subset.json'
    assert run(annotations, out, '--classes', 'red', '--images', '2',
               '--min-area', '10') == 0  # fmt: skip
    subset, whole = json.loads(out.read_text()), json.loads(annotations.read_text())
    assert [c['name'] for c in subset['categories']] == ['red']
    assert len(subset['images']) == 2
    assert {a['category_id'] for a in subset['annotations']} == {1}
    chosen = {image['id'] for image in subset['images']}
    assert {a['image_id'] for a in subset['annotations']} == chosen
    assert all(image in whole['images'] for image in subset['images'])


def test_images_with_smaller_instances_are_left_out_whole(
    annotations, tmp_path, capsys
):
    content = json.loads(annotations.read_text())
    content['annotations'][0]['area'] = 5
    annotations.write_text(json.dumps(content))
    out = tmp_path / 'subset.json'
    with pytest.raises(SystemExit):
        run(annotations, out, '--classes', 'red', 'green', 'blue', '--images', '6',
            '--min-area', '10')  # fmt: skip
    assert 'only 5 images' in capsys.readouterr().err
    assert not out.exists()


def test_an_unknown_class_is_named_with_the_choices(annotations, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run(annotations, tmp_path / 'out.json', '--classes', 'pink')
    error = capsys.readouterr().err
    assert "['pink']: choose from ['blue', 'green', 'red']" in error


def test_a_missing_file_is_named(tmp_path, capsys):
    with pytest.raises(SystemExit):
        run(tmp_path / 'none.json', tmp_path / 'out.json', '--classes', 'red')
    assert 'none.json: No such file' in capsys.readouterr().err
