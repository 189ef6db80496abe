"""tools/download_model.py, against a server of this machine."""

import hashlib
import http.server
import threading

import pytest

from lfi_mmdet.engine import model_zoo
from lfi_mmdet.engine.model_zoo import fetch, find_model, read_index
from lfi_mmdet.engine.preflight import InputError
from lfi_mmdet.shipped import shipped_root

WEIGHTS = bytes(range(256)) * 40
DIGEST = hashlib.sha256(WEIGHTS).hexdigest()
INDEX = 'Import: [zoo/metafile.yml]\n'
METAFILE = """
Models:
  - Name: small
    Config: configs/small.py
    Weights: {weights}
    Metadata: {{SHA256: {sha256}}}
  - Name: large
    Config: configs/large.py
    Metadata: {{Status: not run yet}}
"""


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves the weights, in parts if asked to; may break off or know no parts."""

    ranges = True
    end = None
    asked: list = []

    def do_GET(self):  # noqa: N802
        given = self.headers.get('Range')
        type(self).asked.append(given)
        start = 0
        if given and self.ranges:
            start = int(given.removeprefix('bytes=').removesuffix('-'))
            if start >= len(WEIGHTS):
                self.send_error(416)
                return
        self.send_response(206 if start else 200)
        self.send_header('Content-Length', str(len(WEIGHTS) - start))
        self.end_headers()
        self.wfile.write(WEIGHTS[start : self.end])

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    handler = type('OneHandler', (Handler,), dict(asked=[]))
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        server.address = f'http://127.0.0.1:{server.server_port}/small-{DIGEST[:8]}.pth'
        server.handler = handler
        yield server
        server.shutdown()
        thread.join()


def zoo(root, weights, sha256=DIGEST):
    (root / 'zoo').mkdir(parents=True)
    (root / 'model-index.yml').write_text(INDEX)
    text = METAFILE.format(weights=weights, sha256=sha256)
    (root / 'zoo' / 'metafile.yml').write_text(text)
    return root


@pytest.fixture
def small(tmp_path, server):
    return find_model('small', read_index(zoo(tmp_path / 'index', server.address)))


def test_weights_are_fetched_and_verified_once(small, server, tmp_path):
    path = fetch(small, tmp_path / 'out')
    assert path.read_bytes() == WEIGHTS and path.name == f'small-{DIGEST[:8]}.pth'
    assert fetch(small, tmp_path / 'out') == path
    assert server.handler.asked == [None]
    assert [p.name for p in (tmp_path / 'out').iterdir()] == [path.name]


@pytest.mark.parametrize('ranges', [True, False])
def test_a_download_that_was_cut_off_goes_on(small, server, tmp_path, ranges):
    server.handler.end, server.handler.ranges = 1000, ranges
    with pytest.raises(InputError, match='ended after 1000 of 10240 bytes.*Try again'):
        fetch(small, tmp_path)
    (part,) = tmp_path.glob('*.part')
    assert part.read_bytes() == WEIGHTS[:1000]
    server.handler.end = None
    assert fetch(small, tmp_path).read_bytes() == WEIGHTS
    assert server.handler.asked == [None, 'bytes=1000-']


def test_what_is_there_in_full_is_only_verified(small, server, tmp_path):
    (tmp_path / f'small-{DIGEST[:8]}.pth.part').write_bytes(WEIGHTS)
    assert fetch(small, tmp_path).read_bytes() == WEIGHTS
    assert server.handler.asked == ['bytes=10240-']


def test_other_weights_than_those_of_the_index_are_refused(server, tmp_path):
    other = hashlib.sha256(b'other').hexdigest()
    index = read_index(zoo(tmp_path / 'index', server.address, other))
    with pytest.raises(
        InputError, match=f'sha256 {DIGEST}, but that of small is {other}'
    ):
        fetch(find_model('small', index), tmp_path / 'out')
    assert not list((tmp_path / 'out').iterdir())
    # a file of the same name is left to its owner
    mine = tmp_path / 'out' / f'small-{DIGEST[:8]}.pth'
    mine.write_bytes(b'mine')
    with pytest.raises(InputError, match='delete it'):
        fetch(find_model('small', index), tmp_path / 'out')
    assert mine.read_bytes() == b'mine'


def test_without_network_it_says_what_to_do(small, server, tmp_path):
    server.shutdown()
    server.server_close()
    with pytest.raises(
        InputError, match=f'fetch it elsewhere and put it at .*{DIGEST}'
    ):
        fetch(small, tmp_path)


def test_weights_of_the_repository_are_copied(tmp_path):
    root = zoo(tmp_path / 'index', 'zoo/small.pth')
    model = find_model('small', read_index(root))
    with pytest.raises(InputError, match='there is no .*small.pth'):
        fetch(model, tmp_path, root)
    (root / 'zoo' / 'small.pth').write_bytes(WEIGHTS)
    assert fetch(model, tmp_path, root).read_bytes() == WEIGHTS


def test_bad_indices_and_names_are_named(tmp_path):
    with pytest.raises(InputError, match='model-index.yml cannot be read'):
        read_index(tmp_path)
    root = zoo(tmp_path / 'a', 'x.pth', 'null')
    with pytest.raises(InputError, match='small has weights, but Metadata.SHA256=None'):
        read_index(root)
    index = read_index(zoo(tmp_path / 'b', 'x.pth'))
    with pytest.raises(InputError, match="no model 'smal' in the index; did you mean"):
        find_model('smal', index)
    with pytest.raises(InputError, match='no weights of large .* there are: small'):
        find_model('large', index)


def test_the_tool_lists_our_models(tool, capsys, monkeypatch, tmp_path):
    tool('download_model')
    shown = capsys.readouterr().out
    assert len(shown.splitlines()) == len(read_index())
    assert 'mask-rcnn_vit-s_lfi_coco: no weights published' in shown
    first = shown.splitlines()[0]
    assert first.endswith('.pth'), 'those that there are come first'
    root = zoo(tmp_path / 'index', 'zoo/small.pth')
    (root / 'zoo' / 'small.pth').write_bytes(WEIGHTS)
    monkeypatch.setattr(model_zoo, 'shipped_root', lambda: root)
    tool('download_model', 'small', '--out', 'here')
    assert 'small.pth: verified' in capsys.readouterr().out
    with pytest.raises(SystemExit, match='no weights of large'):
        tool('download_model', 'large')
    assert shipped_root() != root
