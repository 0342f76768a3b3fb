"""The cache of decoded images: the same samples, one copy for all processes, and room that is there before training."""

import hashlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import ROOT, write_things
from mmdet.registry import DATASETS
from PIL import Image
from torch.utils.data import DataLoader

from yolov7_simple.datasets import image_cache, image_reader
from yolov7_simple.datasets.image_cache import CachePlan, ImageCache
from yolov7_simple.datasets.loading import Decoded, fitting_reduction
from yolov7_simple.utils import shared_files
from yolov7_simple.utils.options import OptionError

SIZES = [(64, 48), (40, 90), (130, 70), (33, 17), (61, 61), (100, 20)]
FRAME = 64
KINDS = ['ram', 'disk']


def photograph(rng, width, height):
    """Smooth colours with some noise, as a camera has them."""
    colours = cv2.resize(rng.integers(0, 256, (6, 8, 3), np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(colours + rng.normal(0, 4, colours.shape), 0, 255).astype(np.uint8)


@pytest.fixture
def mixed(tmp_path):
    """A folder of small images; a function builds the mixed dataset; its ``images`` are what is annotated."""
    rng = np.random.default_rng(0)
    images = []
    for i in range(24):
        width, height = SIZES[i % len(SIZES)]
        cv2.imwrite(str(tmp_path / f'{i}.{"png" if i % 5 == 0 else "jpg"}'), photograph(rng, width, height))
        images.append(dict(id=i, file_name=f'{i}.{"png" if i % 5 == 0 else "jpg"}', width=width, height=height))

    def build(scales=(0.1, 1.2), epoch=0, wrapper=None, img_scale=FRAME, **arguments):
        inner = write_things(tmp_path, images)
        mosaic = dict(type='MosaicAffineMixUp', img_scale=(img_scale, img_scale), scaling_ratio_range=scales)
        pipeline = arguments.pop('pipeline', [mosaic, dict(type='PackDetInputs')])
        dataset = DATASETS.build(
            dict(type='SeededMixDataset', dataset=wrapper(inner) if wrapper else inner, pipeline=pipeline, **arguments)
        )
        dataset.set_epoch(3, epoch)
        return dataset

    build.images, build.folder = images, tmp_path
    return build


def digest(sample):
    boxes = sample['data_samples'].gt_instances.bboxes.numpy()
    return hashlib.sha1(sample['inputs'].numpy().tobytes() + boxes.tobytes()).hexdigest()


def digests(dataset, workers=0, context=None):
    options = dict(num_workers=workers, multiprocessing_context=context) if workers else {}
    return [digest(s) for batch in DataLoader(dataset, 1, collate_fn=as_list, **options) for s in batch]


def as_list(batch):
    return batch


def cache_of(dataset):
    return dataset.pipeline[0]._image_cache


@pytest.fixture
def decoded(monkeypatch):
    """Names of the files that are decoded from now on."""
    names, decode = [], image_reader.decode_content

    def noted(content, path, reduction):
        names.append((Path(path).name, reduction))
        return decode(content, path, reduction)

    monkeypatch.setattr(image_reader, 'decode_content', noted)
    return names


@pytest.mark.parametrize('kind', KINDS)
def test_samples_are_the_same_with_the_cache_cold_and_warm_and_nothing_is_decoded_twice(mixed, kind, decoded):
    # Enlarged enough that no image is shrunk.
    scales = (0.1, 3.2)
    plain = {epoch: digests(mixed(scales, epoch)) for epoch in (0, 1)}
    kept = mixed(scales, cache_images=kind)
    decoded.clear()
    for epoch in (0, 1, 0):
        kept.set_epoch(3, epoch)
        assert digests(kept) == plain[epoch]
    assert len(decoded) == len(set(decoded)) > 24
    resumed = mixed(scales, 1, cache_images=kind)
    assert digests(resumed) == plain[1]


@pytest.mark.parametrize('context', ['fork', 'spawn', 'forkserver'])
def test_workers_of_any_kind_share_one_cache_and_make_the_same_samples(mixed, context):
    expected = digests(mixed((0.1, 3.2)))
    kept = mixed((0.1, 3.2), cache_images='ram')
    assert digests(kept, 2, context) == expected
    filled = (cache_of(kept)._records['version'] != 0).sum()
    assert filled > 24  # what the workers decoded is here
    cache_of(kept).put = None  # so that decoding anything again would fail
    assert digests(kept) == expected


def test_an_image_drawn_several_times_is_decoded_once_for_a_sample(mixed, decoded, monkeypatch):
    plain = mixed((1.0, 1.0))
    monkeypatch.setattr(plain.pipeline[0], 'get_indexes', lambda dataset: [0, 0, 0])
    plain[0]
    assert len(decoded) == 1


def test_large_images_are_shrunk_to_what_training_asks_for_and_stay_alike(tmp_path, mixed):
    rng = np.random.default_rng(1)
    for image in mixed.images:
        image.update(width=1000, height=750)
        cv2.imwrite(str(mixed.folder / image['file_name']), photograph(rng, 1000, 750))
    plain, kept = mixed(), mixed(cache_images='ram')
    assert digests(kept) == digests(plain)  # all fit as they are decoded
    plan = cache_of(kept).plan
    plan.lay_out(shrink=True)
    limit = plan.num_bytes(24) / 2**30
    kept = mixed(cache_images='ram', cache_gb=limit)
    assert cache_of(kept).num_images == 24
    # 1000 pixels become 64 * 1.5 at most: decoded at an eighth, 125 pixels, and shrunk.
    assert cache_of(kept).plan.room.max() == 96
    for _ in range(2):
        for i in range(24):
            a, b = plain[i], kept[i]
            np.testing.assert_array_equal(
                a['data_samples'].gt_instances.bboxes.numpy(), b['data_samples'].gt_instances.bboxes.numpy()
            )
            difference = np.abs(a['inputs'].numpy().astype(int) - b['inputs'].numpy())
            assert difference.mean() < 3
    # Cold and warm are equal to the last bit.
    first = mixed(cache_images='ram', cache_gb=limit)
    assert digests(first) == digests(first) == digests(kept)


@pytest.mark.parametrize('what', ['turned', 'wrong', 'changed', 'deleted', 'cut'])
def test_files_other_than_annotated_or_changed_are_noticed(mixed, what):
    kept = mixed((0.1, 3.2), cache_images='ram')
    first = digests(kept)
    path = mixed.folder / '8.jpg'  # 130 x 70
    image = np.full((70, 130, 3), 200, np.uint8)
    if what == 'turned':
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(image).save(path, exif=exif)
    elif what == 'wrong':
        cv2.imwrite(str(path), np.full((50, 90, 3), 200, np.uint8))
    elif what == 'changed':
        cv2.imwrite(str(path), image)
    elif what == 'deleted':
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-30])
    kept.max_damaged = 1.0
    plain = mixed((0.1, 3.2), max_damaged=1.0) if what != 'deleted' else None
    now = digests(kept)
    assert now != first
    if plain:
        assert now == digests(plain) == digests(kept)
    else:
        assert kept.damaged.nonzero().flatten().tolist() == [8]


def test_what_does_not_fit_is_decoded_and_the_plan_says_so(mixed, monkeypatch, decoded):
    notes = []
    monkeypatch.setattr(image_cache, 'print_log', lambda text, *_, **__: notes.append(text))
    expected = digests(mixed((0.1, 3.2)))
    whole = cache_of(mixed((0.1, 3.2), cache_images='ram')).plan
    whole.lay_out(shrink=True)
    limit = whole.num_bytes(10) / 2**30
    kept = mixed((0.1, 3.2), cache_images='ram', cache_gb=limit)
    assert '24 of 24 images' in notes[0]
    assert '10 of 24 images' in notes[1] and 'cache_gb' in notes[1]
    assert digests(kept) == expected
    decoded.clear()
    assert digests(kept) == expected
    assert {int(name.split('.')[0]) for name, _ in decoded} == set(range(10, 24))
    monkeypatch.setattr(image_cache, 'free_bytes', lambda folder: 2 * whole.num_bytes(7))
    assert cache_of(mixed((0.1, 3.2), cache_images='ram')).num_images == 7
    assert '50% of' in notes[-1]


def test_room_that_is_not_there_is_told_before_training(mixed, monkeypatch, tmp_path):
    monkeypatch.setattr(image_cache, 'free_bytes', lambda folder: 5000)
    with pytest.raises(OptionError, match=r"cache_images='ram'.*are free. Set cache_gb to less, or cache_images to"):
        mixed(cache_images='ram', cache_gb=1)
    monkeypatch.undo()

    def full(*_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'posix_fallocate', full)
    with pytest.raises(OptionError, match=r'No space left on device.*cache_folder'):
        mixed(cache_images='disk', cache_folder=str(tmp_path))
    monkeypatch.undo()
    assert not list(tmp_path.glob('yolov7_simple_*'))
    with pytest.raises(OptionError, match='cache_folder'):
        mixed(cache_images='disk', cache_folder=str(tmp_path / 'absent'))
    with pytest.raises(OptionError, match="'ram' or 'disk' or None"):
        mixed(cache_images='memory')
    with pytest.raises(OptionError, match='MosaicAffineMixUp'):
        mixed(cache_images='ram', pipeline=[dict(type='LoadImageFromFile')])


def test_a_container_has_less_memory_than_its_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(shared_files, 'CGROUPS', tmp_path)
    machine = shared_files.free_bytes(None)
    assert machine > 1e8
    (tmp_path / 'memory.max').write_text('max\n')
    (tmp_path / 'memory.current').write_text('70000000\n')
    (tmp_path / 'memory.stat').write_text('anon 1\ninactive_file 20000000\n')
    assert shared_files.free_bytes(None) > 1e8
    (tmp_path / 'memory.max').write_text('100000000\n')
    assert shared_files.free_bytes(None) == 50_000_000


def test_a_wrapper_that_repeats_images_keeps_each_once(mixed):
    kept = mixed(
        (0.1, 3.2), wrapper=lambda inner: dict(type='RepeatDataset', dataset=inner, times=3), cache_images='ram'
    )
    assert len(kept) == 72 and len(cache_of(kept).plan) == 24


def test_levels_are_those_that_training_asks_for():
    sizes = np.array([(640, 480), (4000, 3000), (6000, 4000), (100, 50)])
    plan = CachePlan(list('abcd'), sizes, (640, 640), 2.0)
    assert (plan.room[:, :, 0] > 0).tolist() == [
        [True] * 4,
        [False, True, True, True],
        [False, False, True, True],
        [True] * 4,
    ]
    plan.lay_out(shrink=True)
    assert plan.room[1, 1].tolist() == [1280, 960] and plan.room[2, 2].tolist() == [1280, 854]
    for (width, height), levels in zip(sizes, plan.room):
        for scale in np.linspace(0.01, 2, 50):
            zoom = min(640 / width, 640 / height) * scale
            reduction = fitting_reduction(zoom)
            assert levels[reduction.bit_length() - 1][0] >= min(zoom, 1) * width - 1


KILLED = """
import os, signal, sys
sys.path[:0] = [{tests!r}]
import yolov7_simple
import numpy as np
from yolov7_simple.datasets.image_cache import CachePlan, ImageCache
plan = CachePlan([str(i) for i in range(50)], np.full((50, 2), 600), (640, 640), 1.0)
cache = ImageCache({kind!r}, plan, None, {folder!r})
print(cache.path, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform != 'linux', reason='needs Linux')
@pytest.mark.parametrize('kind', KINDS)
def test_a_killed_process_leaves_nothing(kind, tmp_path):
    code = KILLED.format(tests=str(ROOT / 'tests'), kind=kind, folder=str(tmp_path))
    run = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == -signal.SIGKILL, run.stderr
    assert not list(tmp_path.iterdir())


def test_a_worker_that_is_killed_while_it_writes_leaves_no_half_image_and_no_lock(mixed):
    kept = mixed((0.1, 3.2), cache_images='ram')
    cache = cache_of(kept)
    path, image = kept.get_data_info(0)['img_path'], cv2.imread(kept.get_data_info(0)['img_path'])
    decoded = Decoded(image, (1, 1), np.array([64, 48]))

    def write_and_die():
        pixels = ImageCache._pixels

        class Deadly(np.ndarray):
            def __setitem__(self, *_):
                os.kill(os.getpid(), signal.SIGKILL)

        ImageCache._pixels = lambda *a, **k: pixels(*a, **k).view(Deadly)
        cache.put(path, 1, decoded, cache.version(path))

    process = multiprocessing.get_context('fork').Process(target=write_and_die)
    process.start()
    process.join(20)
    assert process.exitcode == -9
    assert cache.get(path, 1) is None
    cache.put(path, 1, decoded, cache.version(path))
    np.testing.assert_array_equal(cache.get(path, 1).pixels, image)


def test_one_version_of_a_file_wins_and_an_older_one_does_not_overwrite_it(mixed):
    kept = mixed((0.1, 3.2), cache_images='ram')
    cache, path = cache_of(kept), kept.get_data_info(0)['img_path']
    old, new = (Decoded(np.full((48, 64, 3), v, np.uint8), (1, 1), np.array([64, 48])) for v in (1, 2))
    before = cache.version(path)
    time.sleep(0.02)
    os.utime(path)
    cache.put(path, 1, new, cache.version(path))
    cache.put(path, 1, old, before)
    assert cache.get(path, 1).pixels[0, 0, 0] == 2


def test_pixels_of_the_cache_cannot_be_written(mixed):
    kept = mixed((0.1, 3.2), cache_images='ram')
    digests(kept)
    path = kept.get_data_info(0)['img_path']
    found = next(filter(None, (cache_of(kept).get(path, d) for d in (1, 2, 4, 8))))
    with pytest.raises(ValueError, match='read-only'):
        found.pixels[0] = 0


def attach(build, queue, barrier):
    shared_files.get_world_size = lambda: 2
    cache = cache_of(build((0.1, 3.2), cache_images='ram'))
    queue.put((os.getpid(), cache.path))
    barrier.wait(60)


def test_ranks_of_one_machine_share_the_cache_of_the_first(mixed, tmp_path, monkeypatch):
    monkeypatch.setattr(shared_files.tempfile, 'tempdir', str(tmp_path))
    context = multiprocessing.get_context('fork')
    queue, barrier = context.Queue(), context.Barrier(3)
    ranks = [context.Process(target=attach, args=(mixed, queue, barrier)) for _ in range(3)]
    for rank in ranks:
        rank.start()
    found = [queue.get(timeout=60) for _ in ranks]
    for rank in ranks:
        rank.join(60)
    assert len({path for _, path in found}) == 1
    assert sum(f'/proc/{pid}/' in path for pid, path in found) == 1


def test_a_note_of_a_run_that_was_killed_is_not_believed(tmp_path, monkeypatch):
    monkeypatch.setattr(shared_files, 'get_world_size', lambda: 2)
    monkeypatch.setattr(shared_files.tempfile, 'gettempdir', lambda: str(tmp_path))
    for path in ('first', 'second'):
        assert shared_files.shared_path('name', lambda path=path: path, lambda path: False) == path
    assert shared_files.shared_path('name', lambda: 'third', lambda path: True) == 'second'
