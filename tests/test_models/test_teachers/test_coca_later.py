"""CoCa in the layout that open_clip 4 brings."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lfi_mmdet.models.teachers import CoCaTeacher, coca

from .later_open_clip import LaterAttention, later_calls, modernise
from .tiny_open_clip import CLASSES, some_images

PRESENT = torch.tensor([[True, True, False], [False, True, True]])


@pytest.mark.parametrize('reading', CoCaTeacher.READINGS)
@pytest.mark.parametrize('model', ['tiny-coca', 'tiny-coca-cascade', 'tiny-coca-plain'])
def test_the_later_layout_gives_the_same_maps(saved, monkeypatch, model, reading):
    options = dict(pretrained=saved(model)[1], class_names=CLASSES, reading=reading)
    options.update(present='teacher', heads='mean')
    images = some_images()
    expected = CoCaTeacher(model, **options).interact(images, PRESENT)
    load = coca.load_open_clip
    monkeypatch.setattr(coca, 'load_open_clip', lambda *args: modernise(load(*args)))
    with later_calls():
        teacher = CoCaTeacher(model, **options)
        kinds = {type(m) for m in teacher.network.modules()}
        assert LaterAttention in kinds and nn.MultiheadAttention not in kinds
        targets = teacher.interact(images, PRESENT)
    for name in ('maps', 'features', 'log_mass', 'scores'):
        torch.testing.assert_close(
            getattr(targets, name), getattr(expected, name), atol=1e-4, rtol=1e-3
        )


@pytest.mark.parametrize('reading', ['attention', 'similarity'])
def test_poolers_of_their_own_may_need_no_projection(saved, monkeypatch, reading):
    """In open_clip 4, 'parallel' and 'cascade' end in the joint space already."""
    options = dict(pretrained=saved('tiny-coca-cascade')[1], class_names=CLASSES)
    options.update(present='teacher', reading=reading)
    load, found = coca.load_open_clip, []
    for proj in (None, nn.Parameter(torch.eye(32))):

        def changed(*args, proj=proj):
            network = load(*args)
            network.visual.proj = proj
            return network

        monkeypatch.setattr(coca, 'load_open_clip', changed)
        teacher = CoCaTeacher('tiny-coca-cascade', **options)
        found.append(teacher.interact(some_images(), PRESENT))
    torch.testing.assert_close(found[0].maps, found[1].maps)
    torch.testing.assert_close(found[0].scores, found[1].scores)


def test_another_decoder_is_refused_by_name(saved, monkeypatch):
    class ModernDecoder(nn.Module):
        """As open_clip 4 builds it with ``text_arch='modern'``."""

    load = coca.load_open_clip

    def changed(*args):
        network = load(*args)
        network.text_decoder = ModernDecoder()
        return network

    monkeypatch.setattr(coca, 'load_open_clip', changed)
    with pytest.raises(ValueError, match='ModernDecoder.*MultimodalTransformer'):
        CoCaTeacher('tiny-coca', saved('tiny-coca')[1])
