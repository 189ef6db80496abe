from __future__ import annotations

from functools import cache

import pytest

from .tiny_open_clip import save_sharp, write_configs


@pytest.fixture(scope='session')
def configs(tmp_path_factory):
    """Folder with the tiny models, known to open_clip."""
    import open_clip

    folder = write_configs(tmp_path_factory.mktemp('model_configs'))
    open_clip.add_model_config(folder)
    with pytest.MonkeyPatch.context() as patch:
        # reading the BPE vocabulary takes longer than a test
        patch.setattr(
            open_clip.factory, 'SimpleTokenizer', cache(open_clip.SimpleTokenizer)
        )
        yield folder


@pytest.fixture(scope='session')
def saved(configs, tmp_path_factory):
    """Function from the name of a tiny model to (network, file); do not change them."""
    folder = tmp_path_factory.mktemp('weights')
    return cache(lambda name: save_sharp(name, folder))
