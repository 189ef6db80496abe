from __future__ import annotations

import pytest

from .tiny_open_clip import write_configs


@pytest.fixture(scope='session')
def configs(tmp_path_factory):
    """Folder with the tiny models, known to open_clip."""
    import open_clip

    folder = write_configs(tmp_path_factory.mktemp('model_configs'))
    open_clip.add_model_config(folder)
    return folder
