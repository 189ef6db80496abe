"""Maps lie where the patches are, and the picture has all that was asked for."""

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from mmdet.models import DetDataPreprocessor
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.structures import InstanceData
from PIL import Image

from lfi_mmdet.evaluation import InteractionReading
from lfi_mmdet.models.losses.base import InteractionPair
from lfi_mmdet.structures import valid_patches
from lfi_mmdet.visualization import (
    MapPanel,
    MapRow,
    draw_interaction_maps,
    map_rows,
)
from lfi_mmdet.visualization.figure import displayed_image
from lfi_mmdet.visualization.interaction_maps import interaction_figure, relative_map

CLASSES = ('cat', 'dog', 'cow')


def make_reading(shape=(64, 64), layers=2) -> InteractionReading:
    """Two layers of one padded 64 x 64 image; dog is larger than cat, no cow."""
    valid = valid_patches([shape], (4, 4), (16, 16))
    uniform = (valid.float() / valid.sum())[:, None].expand(-1, 3, -1)
    masks = np.zeros((2, *shape), np.uint8)
    masks[0, :16, :16], masks[1, 16:48, :32] = 1, 1
    sample = DetDataSample(metainfo=dict(img_shape=shape))
    sample.gt_instances = InstanceData(
        labels=torch.tensor([0, 1]), masks=BitmapMasks(masks, *shape)
    )
    target = torch.zeros(1, 3, 16)
    target[..., 5] = 1
    pair = InteractionPair(uniform.clamp(min=1e-30).log(), target, torch.zeros(1, 3, 8))
    return InteractionReading(
        inputs=torch.zeros(1, 3, 64, 64),
        data_samples=[sample],
        pairs=[pair] * layers,
        layers=[(3, 0), (7, 1)][:layers],
        present=torch.tensor([[True, True, False]]),
        grid=(4, 4),
        valid=valid,
        patch_size=16,
    )


def make_row(panels=2) -> MapRow:
    values = np.ones((32, 48), np.float32)
    mask = np.zeros((32, 48), bool)
    mask[4:12, 4:20] = True
    return MapRow(
        image=np.zeros((32, 48, 3), np.uint8),
        label='dog',
        mask=mask,
        panels=[
            MapPanel(f'map {i}', values * i, 0.25 * i or None) for i in range(panels)
        ],
    )


@pytest.mark.parametrize('shape', [(64, 64), (40, 64), (64, 33)])
def test_a_map_that_looks_everywhere_alike_is_one_up_to_the_border(shape):
    reading = make_reading(shape)
    values = relative_map(reading.pairs[0].log_attention[0, 0].exp(), reading, 0, shape)
    np.testing.assert_allclose(values, np.ones(shape), rtol=1e-5)


def test_a_peak_stays_at_the_centre_of_its_patch_when_enlarged():
    reading = make_reading((64, 48))
    values = relative_map(reading.pairs[0].target[0, 0], reading, 0, (64, 48))
    assert values.shape == (64, 48)
    # twelve patches are no padding, and patch 5 lies at pixels 16 to 31
    peak = np.argwhere(values > 0.9 * values.max())
    np.testing.assert_allclose(peak.mean(0), [23.5, 23.5])
    assert values.max() == pytest.approx(12, rel=0.07)
    assert values[:8].max() == values[:, 40:].max() == 0


def test_rows_are_the_largest_present_classes_with_teacher_and_layers():
    reading, preprocessor = make_reading(), DetDataPreprocessor()
    rows = map_rows(reading, preprocessor, CLASSES)
    assert [row.label for row in rows] == ['dog', 'cat']
    assert rows[0].mask.sum() == 32 * 32
    titles = [panel.title for panel in rows[0].panels]
    assert titles == ['teacher, layer 1', 'student, block 3', 'student, block 7']
    assert rows[0].panels[0].kl is None
    assert rows[0].panels[0].values[16:32, 16:32].mean() > 8
    assert rows[0].panels[1].kl == pytest.approx(np.log(16), rel=1e-5)
    (row,) = map_rows(reading, preprocessor, CLASSES, max_classes=1, last_only=True)
    assert [panel.title for panel in row.panels] == ['teacher', 'student']


def test_the_figure_has_an_axis_per_image_map_and_scale():
    figure = interaction_figure([make_row(3), make_row(3)])
    assert len(figure.axes) == 2 * (1 + 3 + 1)
    texts = [axis.get_title() for axis in figure.axes]
    assert texts[:4] == ['image', 'map 0', 'map 1\nKL 0.25', 'map 2\nKL 0.50']
    assert [axis.get_ylabel() for axis in figure.axes].count('dog') == 2
    # later rows repeat the numbers, not the titles
    assert texts[4:8] == ['', '', 'KL 0.25', 'KL 0.50']


def test_all_maps_of_a_row_share_the_scale_of_the_teacher():
    row = make_row(2)
    row.panels[0].values[3, 3] = 40
    row.panels[1].values[:] = 1000
    figure = interaction_figure([row])
    limits = {axis.get_images()[-1].get_clim() for axis in figure.axes[1:3]}
    assert limits == {(0, 40)}


def test_the_picture_is_written_whole_and_no_global_backend_is_touched(
    tmp_path, monkeypatch
):
    path = tmp_path / 'new' / 'maps.png'
    backend, figures = matplotlib.get_backend(), plt.get_fignums()
    draw_interaction_maps([make_row()], path)
    with Image.open(path) as image:
        image.load()
        assert image.format == 'PNG' and image.width > image.height > 100
    assert (matplotlib.get_backend(), plt.get_fignums()) == (backend, figures)

    def broken(self, file, **kwargs):
        file.write_bytes(b'half')
        raise OSError('disk full')

    before = path.read_bytes()
    monkeypatch.setattr(FigureCanvasAgg, 'print_figure', broken)
    with pytest.raises(OSError, match='disk full'):
        draw_interaction_maps([make_row()], path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_rows_that_do_not_fit_together_are_refused(tmp_path):
    for rows in ([], [make_row(2), make_row(3)]):
        with pytest.raises(ValueError, match='same panels'):
            draw_interaction_maps(rows, tmp_path / 'maps.png')
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('convert', [True, False])
def test_the_displayed_image_is_the_loaded_one(convert):
    preprocessor = DetDataPreprocessor(
        mean=[100, 110, 120], std=[50, 60, 70], bgr_to_rgb=convert, pad_size_divisor=32
    )
    bgr = torch.randint(0, 256, (3, 40, 50), dtype=torch.uint8)
    sample = DetDataSample(metainfo=dict(img_shape=(40, 50)))
    batch = preprocessor(dict(inputs=[bgr], data_samples=[sample]))
    shown = displayed_image(batch['inputs'][0], batch['data_samples'][0], preprocessor)
    assert batch['inputs'].shape[-2:] == (64, 64)
    np.testing.assert_array_equal(shown, bgr.flip(0).permute(1, 2, 0).numpy())
