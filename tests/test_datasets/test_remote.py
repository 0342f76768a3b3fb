"""Training from HTTP and LMDB: what passes is tried again, what does not is named."""

import builtins
import os
import threading
import time
from collections import Counter
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from mmengine.fileio import get, get_local_path, get_text
from mmengine.fileio.io import backend_instances
from mmengine.hooks import Hook
from test_mix_dataset import Record
from tool_runs import free_port

from yolov7_simple.datasets import remote
from yolov7_simple.datasets.annotation_checks import AnnotationError, find_missing, read_json
from yolov7_simple.datasets.loading import read_file
from yolov7_simple.datasets.remote import MAX_FAILED, ForkedLmdbBackend, RemoteError, RetryingHTTPBackend, is_remote
from yolov7_simple.runtime.errors import DamagedImageError
from yolov7_simple.utils.options import OptionError

TIMEOUT = 0.5
HTTP = {'backend': 'http', 'timeout': TIMEOUT}
PATIENT = {'backend': 'http'}  # where nothing hangs: a slow machine is no slow server


class Handler(SimpleHTTPRequestHandler):
    """A server of files that fails as `faults` tells: of a path, or of all, one at each request."""

    def __init__(self, *args, faults, asked, **kwargs):
        self.faults, self.asked = faults, asked
        super().__init__(*args, **kwargs)

    def do_GET(self):
        self.asked[self.path] += 1
        faults = self.faults.get(self.path, self.faults.get('all', []))
        fault = faults.pop(0) if faults else 200
        if fault == 'hangs':
            time.sleep(3 * TIMEOUT)
        elif fault == 'cut':
            self.send_response(200)
            self.send_header('Content-Length', '1000')
            self.end_headers()
            self.wfile.write(b'few')
        elif fault == 'closes':
            self.connection.close()
        elif fault == 200:
            super().do_GET()
        else:
            self.send_error(fault)

    def log_message(self, *args):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads, block_on_close = True, False

    def handle_error(self, *args):
        pass  # clients that have gone


@pytest.fixture
def served(project, monkeypatch):
    """URL of the set of eight images, faults of its server to be filled in, and what it was asked for."""
    monkeypatch.setattr(remote, 'FIRST_PAUSE', 0.001)
    backend_instances.clear()
    faults, asked = {}, Counter()
    server = Server(('127.0.0.1', 0), partial(Handler, directory=project / 'data', faults=faults, asked=asked))
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}/', faults, asked
    server.shutdown()
    server.server_close()
    backend_instances.clear()


def options(root, backend_args, workers=0):
    """What a user changes in a config whose data is elsewhere."""
    if backend_args:
        backend_args = {'_delete_': True, **backend_args}  # the base has None there
    found = {'val_evaluator.ann_file': f'{root}annotations/all.json', 'val_evaluator.backend_args': backend_args}
    for place in ('train_dataloader.dataset.dataset', 'val_dataloader.dataset'):
        found |= {f'{place}.data_root': root, f'{place}.backend_args': backend_args}
    for place in ('train_dataloader.dataset.pipeline.0', *(f'val_dataloader.dataset.pipeline.{i}' for i in (0, 1))):
        found[f'{place}.backend_args'] = backend_args
    for loader in ('train_dataloader', 'val_dataloader'):
        found |= {f'{loader}.num_workers': workers, f'{loader}.persistent_workers': workers > 0}
    return {**found, 'train_cfg.max_epochs': 1}


class Faults(Hook):
    """Begin to fail once training has begun."""

    def __init__(self, faults, **new):
        self.faults, self.new = faults, new

    def before_train(self, runner):
        self.faults.update(self.new)

    def before_val(self, runner):
        self.faults.clear()  # no image may be missing there


def test_training_over_http_is_as_from_the_disk(run, project, served, tmp_path):
    url, faults, asked = served
    records = [Record(), Record()]
    run(tmp_path / 'local', records[0], **options(f'{project}/data/', None))
    faults['all'] = [503, 'hangs', 'closes', 200, 'cut', 503, 503, 200, 'closes', 429]
    runner = run(tmp_path / 'http', records[1], **options(url, HTTP))
    assert records[0].sums == records[1].sums and records[0].sums
    assert not faults['all'] and not runner.train_dataloader.dataset.damaged.any()


def test_what_fails_for_good_is_a_damaged_image(run, served, tmp_path, capfd):
    url, faults, asked = served
    hook = Faults(faults, **{'/images/2.png': [503] * 1000})
    allowed = {'train_dataloader.dataset.max_damaged': 0.5}
    runner = run(tmp_path, hook, **options(url, PATIENT), **allowed)
    assert runner.train_dataloader.dataset.damaged.tolist() == [0, 0, 1, 0, 0, 0, 0, 0]
    assert asked['/images/2.png'] >= 4


def test_training_stops_when_the_server_does(run, served, tmp_path):
    url, faults, asked = served
    hook = Faults(faults, all=['closes'] * 1000)
    allowed = {'train_dataloader.dataset.max_damaged': 1.0}
    with pytest.raises(RemoteError, match=rf'{url[:-1]} gave none of the last {MAX_FAILED} files; the last one, {url}'):
        run(tmp_path, hook, **options(url, PATIENT), **allowed)


@pytest.mark.parametrize(
    ('fault', 'reason'),
    [
        (503, 'HTTP 503 Service Unavailable, in 4 attempts'),
        ('hangs', f'no answer within {TIMEOUT} s, in 4 attempts'),
        ('closes', '.*, in 4 attempts'),
        ('cut', r'IncompleteRead\(3 bytes read, 997 more expected\), in 4 attempts'),
        (404, 'HTTP 404 .*[^s]'),
        (403, 'HTTP 403 Forbidden'),
    ],
)
def test_reasons(served, fault, reason):
    url, faults, asked = served
    faults['/images/1.png'] = [fault] * 10
    with pytest.raises(DamagedImageError, match=f'^{url}images/1.png cannot be read: {reason}$'):
        read_file(f'{url}images/1.png', HTTP if fault == 'hangs' else PATIENT)
    assert asked['/images/1.png'] == (1 if fault in (403, 404) else 4)
    read_file(f'{url}images/2.png', PATIENT)


def test_failures_are_named_and_counted(served, monkeypatch):
    url, faults, asked = served
    said = []
    monkeypatch.setattr(remote, 'print_log', lambda text, *args, **kwargs: said.append(text))
    backend = RetryingHTTPBackend(retries=20)
    faults['all'] = [503] * 9
    assert backend.get(f'{url}images/1.png')
    assert len(said) == 4  # the 1st, 2nd, 4th and 8th
    assert said[0].startswith(f'{url}images/1.png: HTTP 503 Service Unavailable (attempt 1 of 21)')
    assert said[-1].endswith(f'failures of process {os.getpid()}: 8')


def test_one_bad_file_does_not_make_a_server_down(served):
    url, faults, asked = served
    faults['/images/1.png'] = [503] * 1000
    for i in range(2 * MAX_FAILED):
        with pytest.raises(DamagedImageError):
            read_file(f'{url}images/1.png', PATIENT)
        read_file(f'{url}images/{2 + i % 3}.png', PATIENT)


def test_names_with_spaces_and_umlauts(served, project):
    url, _, _ = served
    (project / 'data' / 'ein Bär.txt').write_text('Bär', encoding='utf-8')
    assert get_text(f'{url}ein Bär.txt') == 'Bär'
    assert get(f'{url}ein%20Bär.txt') == 'Bär'.encode()


def test_a_server_that_is_down_is_said_before_training(run, project, monkeypatch, tmp_path):
    monkeypatch.setattr(remote, 'FIRST_PAUSE', 0.01)
    url = f'http://127.0.0.1:{free_port()}/'
    with pytest.raises(AnnotationError, match=f'^{url}annotations/all.json: cannot be read: Connection refused'):
        run(tmp_path, **options(url, PATIENT))
    backend_instances.clear()
    images = options(url, PATIENT)
    annotations = {'train_dataloader.dataset.dataset.ann_file': str(project / 'data/annotations/all.json')}
    args = {'train_dataloader.dataset.dataset.backend_args': None}
    with pytest.raises(AnnotationError, match=f'all.json: of its images 3 were tried .*{url}images/0.png .*refused'):
        run(tmp_path, **{**images, **annotations, **args})


def test_a_folder_that_is_not_there_is_said_before_training(run, served, tmp_path):
    url, _, asked = served
    with pytest.raises(AnnotationError, match=r'3 were tried and none can be read: http\S+ cannot be read: HTTP 404'):
        run(tmp_path, **options(url, PATIENT), **{'train_dataloader.dataset.dataset.data_prefix.img': 'pictures/'})
    assert asked['/pictures/0.png'] == 1


def test_few_remote_images_are_read_before_training(served):
    url, faults, asked = served
    records = [{'id': i, 'file_name': f'{i}.png'} for i in range(8)]
    faults['/images/0.png'] = [404]
    assert find_missing(records, f'{url}images/', url, False, PATIENT) == []
    assert asked == {'/images/0.png': 1, '/images/4.png': 1}


def test_annotations_that_are_not_there(served):
    url, _, asked = served
    with pytest.raises(AnnotationError, match=r'none\.json: cannot be read: HTTP 404'):
        read_json(f'{url}none.json')
    assert asked['/none.json'] == 1


def test_backends_that_are_not_there():
    with pytest.raises(RemoteError, match='no file backend'):
        is_remote('a.json', {'backend': 'floppy'})
    with pytest.raises(OptionError, match='did you mean retries'):
        is_remote('a.json', {'backend': 'http', 'retry': 1})
    with pytest.raises(RemoteError, match='no file backend'):
        is_remote('floppy://a.json', None)


@pytest.fixture
def database(project, tmp_path):
    lmdb = pytest.importorskip('lmdb')
    data = project / 'data'
    with lmdb.open(str(tmp_path / 'set.lmdb'), map_size=1 << 24) as env, env.begin(write=True) as transaction:
        for path in sorted(data.rglob('*.*')):
            if path.name != 'ein Bär.txt':
                transaction.put(path.relative_to(data).as_posix().encode(), path.read_bytes())
    backend_instances.clear()
    yield {'backend': 'lmdb', 'db_path': str(tmp_path / 'set.lmdb')}
    backend_instances.clear()


@pytest.mark.parametrize('workers', [0, 2])
def test_training_from_lmdb_is_as_from_the_disk(run, project, database, tmp_path, workers):
    """Workers are forked after this process has read the annotations."""
    records = [Record(), Record()]
    run(tmp_path / 'local', records[0], **options(f'{project}/data/', None))
    run(tmp_path / 'lmdb', records[1], **options('', database, workers))
    assert records[0].sums == records[1].sums and records[0].sums


def test_what_lmdb_lacks(database):
    with pytest.raises(DamagedImageError, match=r'^images/99\.png cannot be read: no such key in LMDB .*set\.lmdb$'):
        read_file('images/99.png', database)
    with pytest.raises(DamagedImageError, match='keys in ASCII'):
        read_file('images/ä.png', database)
    with get_local_path('annotations/all.json', backend_args=database) as path:
        assert read_json(path)['images'] == read_json('annotations/all.json', database)['images']
    assert not os.path.exists(path)
    with pytest.raises(RemoteError, match=r'nothing\.lmdb'):
        read_file('images/1.png', {**database, 'db_path': 'nothing.lmdb'})


def test_workers_open_lmdb_for_themselves(database):
    backends = [ForkedLmdbBackend(database['db_path'], readahead=ahead) for ahead in (True, False)]
    content = [backend.get('images/1.png') for backend in backends]
    child = os.fork()
    if not child:
        try:
            os._exit(0 if [backend.get('images/1.png') for backend in backends] == content else 1)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    assert [pid for pid, _ in ForkedLmdbBackend._clients] == [os.getpid()] * len(ForkedLmdbBackend._clients)
    assert [backend.get('images/1.png') for backend in backends] == content


def test_a_database_that_several_read(database):
    """Datasets and transforms may have other options; lmdb would refuse to open it once more."""
    paths = (database['db_path'], os.path.relpath(database['db_path']))
    first, second = (ForkedLmdbBackend(path, readahead=ahead) for path, ahead in zip(paths, (True, False)))
    content = first.get('images/1.png')
    assert second.get('images/1.png') == content
    del second
    assert first.get('images/1.png') == content


def test_lmdb_is_named_where_it_is_missing(monkeypatch):
    real = builtins.__import__

    def without(name, *args):
        if name == 'lmdb':
            raise ImportError(name)
        return real(name, *args)

    monkeypatch.setattr(builtins, '__import__', without)
    backend_instances.clear()
    with pytest.raises(RemoteError, match='pip install lmdb'):
        read_json('a.json', {'backend': 'lmdb', 'db_path': 'x'})
