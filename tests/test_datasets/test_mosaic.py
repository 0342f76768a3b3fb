"""The data path: pixels and boxes of a sample, odd and damaged files, seeds, colours, multi-scale."""

import random
from pathlib import Path

import cv2
import mmcv
import numpy as np
import pytest
import torch
from conftest import SHARED, png_bomb, write_things
from mmdet.datasets.transforms import RandomAffine
from mmdet.registry import DATASETS, TRANSFORMS
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import HorizontalBoxes
from mmengine.dataset import pseudo_collate, worker_init_fn
from mmengine.logging import MessageHub
from mmengine.structures import InstanceData
from PIL import Image
from torch.utils.data import DataLoader

from yolov7_simple.datasets import geometry, image_reader
from yolov7_simple.datasets import mosaic as ours
from yolov7_simple.datasets.loading import CheckImageFile, decode_content, decode_image
from yolov7_simple.datasets.mosaic import MosaicAffineMixUp, RandomHSVGain
from yolov7_simple.models.multi_scale import BatchMultiScale
from yolov7_simple.runtime.errors import DamagedImageError
from yolov7_simple.runtime.images import is_cut_short

COCO_MINI = SHARED / 'data/coco_mini'
LOADER = dict(type='LoadAnnotations', with_bbox=True)


def info(path, size, boxes=(), labels=(), ignored=()):
    """Annotations of one image, as a dataset gives them to the transform."""
    return dict(
        img_path=str(path),
        width=size[0],
        height=size[1],
        gt_bboxes=HorizontalBoxes(np.float32(boxes).reshape(-1, 4)),
        gt_bboxes_labels=np.array(labels, np.int64),
        gt_ignore_flags=np.array(ignored if len(ignored) else [False] * len(labels), bool),
    )


@pytest.fixture(scope='module')
def rectangles(tmp_path_factory):
    """Images of many sizes with one rectangle, of full brightness in the channel of its label; 3: none."""
    rng = np.random.default_rng(0)
    sources = {label: [] for label in range(4)}
    sizes = [(320, 240), (90, 200), (641, 479), (37, 23), (1000, 300), (160, 120)]
    for label in sources:
        for i, (width, height) in enumerate(sizes):
            image = np.zeros((height, width, 3), np.uint8)
            x1, y1 = rng.integers(0, (width // 2, height // 2))
            x2, y2 = rng.integers((x1 + width // 3, y1 + height // 3), (width + 1, height + 1))
            if label < 3:
                image[y1:y2, x1:x2, label] = 255
            path = tmp_path_factory.mktemp('rectangles') / f'{label}_{i}.{"png" if i % 2 else "jpg"}'
            # Without subsampled colours, which would smear the edges.
            sampling = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
            cv2.imwrite(str(path), image, sampling if path.suffix == '.jpg' else [])
            # One in three annotations states a wrong size.
            size = (width + 20, height) if i % 3 == 2 else (width, height)
            boxes = [[x1, y1, x2, y2]] if label < 3 else []
            sources[label].append((path, size, boxes, [label] if label < 3 else []))
    return sources


MODES = {
    # The frames cut nothing here, so a box that does not touch the border of the output is complete.
    'turned': dict(center_ratio_range=(1, 1)),
    # Slightly rotated, then not rotated and cut by the canvas.
    'cut': dict(max_rotate_degree=0.01, max_shear_degree=0.0),
    'upright': dict(max_rotate_degree=0.0, max_shear_degree=0.0),
    'mixup': dict(),
    'single': dict(),
    'closed': dict(),
}


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('img_scale', [(160, 160), (200, 96)])
def test_boxes_sit_on_their_pixels(rectangles, mode, img_scale):
    transform = MosaicAffineMixUp(img_scale, pad_val=0, mixup_prob=float(mode == 'mixup'), **MODES[mode])
    transform.close(mode == 'closed')
    rng = np.random.default_rng(1)
    np.random.seed(1)
    num_checked, worst = 0, 0.0
    for _ in range({'cut': 400, 'mixup': 200}.get(mode, 100)):
        one = rng.integers(3)
        labels = {'mixup': [3, 3, 3, 3, one], 'single': [one], 'closed': [one]}.get(mode, rng.permutation(4))
        sources = [info(*rectangles[label][rng.integers(6)]) for label in labels]
        result = transform.transform(dict(sources[0], mix_results=sources[1:]))
        image, boxes = result['img'], result['gt_bboxes'].numpy()
        assert image.shape == (img_scale[1], img_scale[0], 3)
        assert (boxes >= 0).all() and (boxes <= np.tile(img_scale, 2)).all() and (boxes[:, 2:] > boxes[:, :2]).all()
        for box, label in zip(boxes, result['gt_bboxes_labels']):
            at_border = (box[:2] < 1).any() or (box[2:] > np.array(img_scale) - 1).any()
            if min(box[2:] - box[:2]) < 4 or (mode in ('turned', 'single') and at_border):
                continue
            ys, xs = np.nonzero(image[..., label] > (63 if mode == 'mixup' else 127))
            assert len(xs), f'no pixel of the box {box}'
            pixels = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
            worst = max(worst, np.abs(pixels - box).max())
            num_checked += 1
    assert num_checked > 40
    assert worst <= 1.0


def test_boxes_of_cut_rectangles_hold_all_their_pixels(rectangles):
    """With all augmentation of training, a box may be too large where its rotated rectangle is cut, never too small."""
    transform = MosaicAffineMixUp((160, 160), pad_val=0, mixup_prob=0.0)
    np.random.seed(2)
    for _ in range(300):
        sources = [info(*rectangles[label][np.random.randint(6)]) for label in np.random.permutation(4)]
        result = transform.transform(dict(sources[0], mix_results=sources[1:]))
        for box, label in zip(result['gt_bboxes'].numpy(), result['gt_bboxes_labels']):
            ys, xs = np.nonzero(result['img'][..., label] > 127)
            if len(xs):
                assert (box[:2] <= np.array([xs.min(), ys.min()]) + 1.5).all()
                assert (box[2:] >= np.array([xs.max(), ys.max()]) + 1 - 1.5).all()


@pytest.mark.parametrize('draw', [geometry.warp, geometry.paste])
@pytest.mark.parametrize('flip', [False, True])
def test_enlarged_pixels_end_sharply_where_they_shall(draw, flip):
    matrix = geometry.translation(10, 20) @ geometry.scaling(40, 40) @ (geometry.mirror(4) if flip else np.eye(3))
    inside = (0.5, 0.0, 3.2, 3.75)
    left, top, right, bottom = geometry.transform_box(matrix, inside)
    target = np.zeros((200, 190, 4), np.uint8)
    draw(np.full((4, 4, 4), 255, np.uint8), inside, matrix, target)
    for threshold in (5, 250):
        ys, xs = np.nonzero(target[..., 0] > threshold)
        edges = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
        np.testing.assert_allclose(edges, [left, top, right, bottom], atol=1)


def test_boxes_beyond_the_canvas_or_too_small_are_dropped_and_ignore_flags_stay(tmp_path):
    path = tmp_path / 'a.png'
    cv2.imwrite(str(path), np.zeros((100, 100, 3), np.uint8))
    # The canvas shows the right half of the first source: one box is beyond it, one is cut, one is thin.
    boxes = [[0, 0, 40, 100], [40, 50, 80, 100], [60, 60, 60.5, 90], [70, 70, 90, 90]]
    first = info(path, (100, 100), boxes, [0, 1, 2, 3], [False, False, False, True])
    fixed = dict(max_rotate_degree=10.0, max_shear_degree=0.0, max_translate_ratio=0.0, scaling_ratio_range=(0.5, 0.5))
    transform = MosaicAffineMixUp((100, 100), (0.5, 0.5), mixup_prob=0.0, flip_prob=0.0, **fixed)
    for seed in range(20):
        np.random.seed(seed)
        result = transform.transform(dict(first, mix_results=[info(path, (100, 100)) for _ in range(3)]))
        assert result['gt_bboxes_labels'].tolist() == [1, 3]
        assert result['gt_ignore_flags'].tolist() == [False, True]
        assert result['gt_bboxes'].tensor.dtype == torch.float32


def save_odd_images(folder):
    """One file of each kind; sizes of EXIF-rotated ones are those of the file, before it is turned upright."""
    rng = np.random.default_rng(3)
    smooth = cv2.resize(rng.integers(0, 256, (4, 5, 3), np.uint8), (50, 40), interpolation=cv2.INTER_CUBIC)
    cv2.imwrite(str(folder / 'grey.png'), smooth[..., 0])
    cv2.imwrite(str(folder / 'grey.jpg'), smooth[..., 0])
    cv2.imwrite(str(folder / 'sixteen.png'), smooth.astype(np.uint16) * 257)
    cv2.imwrite(str(folder / 'alpha.png'), np.dstack([smooth, smooth[..., 0]]))
    cv2.imwrite(str(folder / 'pixel.png'), smooth[:1, :1])
    cv2.imwrite(str(folder / 'pixel.jpg'), smooth[:1, :1])
    picture = Image.fromarray(smooth)
    picture.convert('CMYK').save(folder / 'cmyk.jpg')
    picture.convert('P').save(folder / 'palette.png')
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(folder / 'turned.jpg', exif=exif)
    return sorted(folder.iterdir())


def test_odd_images_come_out_as_mmcv_loads_them(tmp_path):
    paths = save_odd_images(tmp_path)
    assert len(paths) == 9
    for path in paths:
        expected = mmcv.imfrombytes(path.read_bytes())
        height, width = expected.shape[:2]
        transform = MosaicAffineMixUp((width, height), flip_prob=0.0)
        transform.close()
        with Image.open(path) as picture:
            result = transform.transform(info(path, picture.size))
        np.testing.assert_array_equal(result['img'], expected, err_msg=path.name)


def test_odd_images_fill_their_place_in_a_mosaic(tmp_path):
    for path in save_odd_images(tmp_path):
        fixed = dict(max_rotate_degree=1.0, max_shear_degree=0.0, max_translate_ratio=0.0, flip_prob=0.0)
        transform = MosaicAffineMixUp((60, 60), (1, 1), scaling_ratio_range=(1, 1), mixup_prob=0.0, **fixed)
        result = transform.transform(dict(info(path, (0, 0)), mix_results=[info(path, (0, 0))] * 3))
        # The four meet in the middle, and each is at least 48 pixels wide and high.
        middle = result['img'][10:-10, 10:-10]
        assert (middle == 114).all(2).mean() < 0.05, path.name
        if path.stem == 'pixel':
            difference = np.abs(middle.astype(int) - mmcv.imfrombytes(path.read_bytes())).max(2)
            assert (difference <= 1).mean() > 0.9  # all but the seams between sources


@pytest.mark.parametrize('suffix', ['jpg', 'png'])
@pytest.mark.parametrize('reduction', [1, 2, 4, 8])
def test_reduced_pixels_are_means_of_squares(tmp_path, suffix, reduction):
    x, y = np.meshgrid(np.arange(117), np.arange(83))
    image = np.stack([x * 2, y * 3, x + y], -1).astype(np.uint8)
    path = tmp_path / f'a.{suffix}'
    cv2.imwrite(str(path), image, [cv2.IMWRITE_JPEG_QUALITY, 100] if suffix == 'jpg' else [])
    small = decode_image(str(path), reduction)
    assert small.shape == (-(-83 // reduction), -(-117 // reduction), 3)
    height, width = small.shape[:2]
    # Squares that reach beyond the image are filled with its last row and column.
    padded = np.pad(image, ((0, height * reduction - 83), (0, width * reduction - 117), (0, 0)), 'edge')
    means = padded.reshape(height, reduction, width, reduction, 3).mean((1, 3))
    np.testing.assert_allclose(small, means, atol=4)


def test_sources_are_decoded_only_if_seen_and_only_as_large_as_needed(rectangles, monkeypatch):
    reads = []
    monkeypatch.setattr(
        image_reader,
        'decode_content',
        lambda content, path, reduction: reads.append(reduction) or decode_content(content, path, reduction),
    )
    for scale, expected in ((2.0, lambda: len(reads) < 400 and set(reads) == {1}), (0.25, lambda: max(reads) == 4)):
        reads.clear()
        transform = MosaicAffineMixUp((160, 160), scaling_ratio_range=(scale, scale), mixup_prob=0.0)
        for _ in range(100):
            transform.transform(dict(info(*rectangles[0][1]), mix_results=[info(*rectangles[1][1])] * 3))
        assert expected(), (scale, len(reads), set(reads))


def test_a_config_of_before_with_a_cache_of_the_transform_goes_on(rectangles, monkeypatch):
    notes = []
    monkeypatch.setattr(ours, 'print_log', lambda text, *_, **__: notes.append(text))
    for count in (0, 40):
        transform = MosaicAffineMixUp((160, 160), max_cached_images=count)
        sources = [info(*rectangles[label][0]) for label in range(4)]
        assert transform.transform(dict(sources[0], mix_results=sources[1:]))['img'].shape == (160, 160, 3)
    assert len(notes) == 1 and 'cache_images=ram' in notes[0]


@pytest.mark.parametrize(
    'arguments',
    [
        dict(img_scale=(0, 640)),
        dict(scaling_ratio_range=(2.0, 0.1)),
        dict(mixup_ratio_range=(0.0, 1.0)),
        dict(center_ratio_range=(-0.5, 1.5)),
        dict(mixup_prob=1.5),
        dict(flip_prob=-0.1),
    ],
)
def test_mistakes_in_the_config_are_named(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        MosaicAffineMixUp(**arguments)


def test_mistakes_in_the_pipeline_are_named(rectangles):
    with pytest.raises(ValueError, match='SeededMixDataset'):
        MosaicAffineMixUp().transform(info(*rectangles[0][0]))
    with pytest.raises(ValueError, match='with_mask=False'):
        MosaicAffineMixUp().transform(dict(info(*rectangles[0][0]), gt_masks=None))
    with pytest.raises(ValueError, match='hue'):
        RandomHSVGain(hue=1.5)


# Files and seeds


@pytest.fixture
def dataset_config(tmp_path):
    """COCO annotations of 120 small images; a function makes the config of the mixed dataset."""
    rng = np.random.default_rng(4)
    images = []
    for i in range(120):
        cv2.imwrite(str(tmp_path / f'{i}.jpg'), rng.integers(0, 256, (24, 32, 3), np.uint8))
        images.append(dict(id=i, file_name=f'{i}.jpg', width=32, height=24))
    inner = write_things(tmp_path, images)

    def make(**arguments):
        return dict(
            type='SeededMixDataset',
            dataset=inner,
            pipeline=[
                dict(type='MosaicAffineMixUp', img_scale=(64, 64)),
                dict(type='RandomHSVGain'),
                dict(type='PackDetInputs'),
            ],
            **arguments,
        )

    return make


def samples_of(dataset, num_workers, **arguments):
    start = (lambda worker: worker_init_fn(worker, num_workers, 0, 7)) if num_workers else None
    return DataLoader(dataset, 8, num_workers=num_workers, collate_fn=pseudo_collate, worker_init_fn=start, **arguments)


def fingerprints(loader):
    return [
        (int(image.sum()), sample.gt_instances.bboxes.tensor.sum().item())
        for batch in loader
        for image, sample in zip(batch['inputs'], batch['data_samples'])
    ]


@pytest.mark.parametrize('mosaic_prob', [0, 0.5, 1])
def test_so_many_samples_are_mosaics(mosaic_prob):
    """With mixup only in mosaics; a probability of 1 draws what a config of before has drawn."""
    transform = MosaicAffineMixUp(mosaic_prob=mosaic_prob, mixup_prob=0.5)
    np.random.seed(3)
    drawn = [transform.get_indexes(range(1000)) for _ in range(400)]
    counts = [len(indexes) for indexes in drawn]
    assert set(counts) <= {0, 3, 4}
    assert sum(map(bool, counts)) / 400 == pytest.approx(mosaic_prob, abs=0.1)
    if mosaic_prob:
        assert counts.count(4) / (400 - counts.count(0)) == pytest.approx(0.5, abs=0.1)
    if mosaic_prob == 1:
        np.random.seed(3)
        assert drawn[0] == np.random.randint(0, 1000, 3 + (np.random.uniform() < 0.5)).tolist()


def test_samples_follow_from_seed_epoch_and_index_for_any_number_of_workers(dataset_config):
    dataset = DATASETS.build(dataset_config())
    dataset.set_epoch(5, 0)
    first = fingerprints(samples_of(dataset, 0))
    assert len(set(first)) == 120
    persistent = samples_of(dataset, 2, persistent_workers=True)
    assert fingerprints(persistent) == first
    assert fingerprints(samples_of(dataset, 3)) == first
    # Persistent workers see the new epoch; a process that starts at it, as after --resume, makes the same samples.
    dataset.set_epoch(5, 1)
    second = fingerprints(persistent)
    assert not set(second) & set(first)
    resumed = DATASETS.build(dataset_config())
    resumed.set_epoch(5, 1)
    assert fingerprints(samples_of(resumed, 0)) == second
    resumed.set_epoch(6, 1)
    assert not set(fingerprints(samples_of(resumed, 0))) & set(second)


def test_without_a_seed_samples_are_new_each_time_and_with_one_other_random_numbers_go_on(dataset_config):
    dataset = DATASETS.build(dataset_config())
    assert int(dataset[0]['inputs'].sum()) != int(dataset[0]['inputs'].sum())
    dataset.set_epoch(5, 0)
    np.random.seed(0)
    random.seed(0)
    expected = np.random.RandomState(0).uniform(), random.Random(0).random()
    dataset[0]
    assert (np.random.uniform(), random.random()) == expected


def damage(path, kind):
    data = Path(path).read_bytes()
    if kind == 'missing':
        Path(path).unlink()
    else:
        Path(path).write_bytes(
            {'cut': data[:-20], 'empty': b'', 'text': b'not an image', 'bomb': png_bomb(30000, 30000)}[kind]
        )


@pytest.mark.parametrize('kind', ['missing', 'cut', 'empty', 'text', 'bomb'])
def test_a_damaged_file_is_replaced_and_named_once(dataset_config, tmp_path, kind, monkeypatch):
    messages = []
    monkeypatch.setattr(
        'yolov7_simple.datasets.mix_dataset.print_log', lambda message, *_, **__: messages.append(message)
    )
    damage(tmp_path / '7.jpg', kind)
    dataset = DATASETS.build(dataset_config())
    for epoch in range(2):
        dataset.set_epoch(0, epoch)
        samples = [dataset[i] for i in range(120)]
        assert all(sample['inputs'].shape == (3, 64, 64) for sample in samples)
        assert samples[7]['data_samples'].img_path != str(tmp_path / '7.jpg')
    assert dataset.damaged.nonzero().flatten().tolist() == [7]
    assert len(messages) == 1
    assert str(tmp_path / '7.jpg') in messages[0]


def test_workers_share_what_they_know_of_damaged_files(dataset_config, tmp_path):
    damage(tmp_path / '7.jpg', 'cut')
    dataset = DATASETS.build(dataset_config())
    assert len(fingerprints(samples_of(dataset, 2))) == 120
    assert dataset.damaged.nonzero().flatten().tolist() == [7]


def test_too_many_damaged_files_stop(dataset_config, tmp_path):
    for i in (3, 4):
        damage(tmp_path / f'{i}.jpg', 'cut')
    dataset = DATASETS.build(dataset_config())
    with pytest.raises(RuntimeError, match=r'2 of 120 images cannot be read, which is more than 1%.*jpg'):
        for i in range(120):
            dataset[i]
    dataset = DATASETS.build(dataset_config(max_damaged=0.02))
    assert all(dataset[i] is not None for i in range(120))


def test_cut_files_are_told_from_whole_ones(tmp_path):
    for path in save_odd_images(tmp_path):
        data = path.read_bytes()
        assert not is_cut_short(data), path.name
        assert not is_cut_short(data + b'a trailer of the camera'), path.name
        for length in (len(data) - 12, len(data) // 2):
            assert is_cut_short(data[:length]), (path.name, length)
            assert is_cut_short(data[:length] + bytes(len(data) - length)), (path.name, length)


def test_at_test_time_a_cut_file_is_an_error(tmp_path):
    path = save_odd_images(tmp_path)[0]
    check = CheckImageFile()
    assert check.transform(dict(img_path=str(path))) == dict(img_path=str(path))
    assert check.transform(dict(img_path=None)) == dict(img_path=None)
    damage(path, 'cut')
    with pytest.raises(DamagedImageError, match=path.name):
        check.transform(dict(img_path=str(path)))


# Colours and multi-scale


def test_hsv_gains_multiply_in_hsv_and_packing_takes_the_planes():
    rng = np.random.default_rng(5)
    image = rng.integers(0, 256, (40, 50, 3), np.uint8)
    np.random.seed(3)
    gains = 1 + np.random.uniform(-1, 1, 3) * (0.015, 0.7, 0.4)
    np.random.seed(3)
    result = RandomHSVGain(0.015, 0.7, 0.4).transform(dict(img=image.copy()))['img']
    hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV) * gains
    hsv[..., 0] %= 180
    expected = cv2.cvtColor(np.rint(hsv).clip(0, 255).astype(np.uint8), cv2.COLOR_HSV2BGR)
    assert np.abs(result.astype(int) - expected).mean() < 0.5
    packed = TRANSFORMS.build(dict(type='PackDetInputs', meta_keys=())).transform(dict(img=result))['inputs']
    assert packed.is_contiguous() and packed.data_ptr() == result.ctypes.data
    np.testing.assert_array_equal(packed.permute(1, 2, 0).numpy(), result)
    unchanged = RandomHSVGain(0, 0, 0).transform(dict(img=image.copy()))['img']
    assert np.abs(unchanged.astype(int) - image).max() <= 6  # 8 bits of hue


def test_padding_of_a_letterbox_keeps_its_colour(rectangles):
    transform = MosaicAffineMixUp((160, 160))
    transform.close()
    result = RandomHSVGain(value=1.0).transform(transform.transform(info(*rectangles[0][0])))
    assert result['content_shape'] == (120, 160)
    assert (result['img'][120:] == 114).all() and (result['img'][:120] != 114).any()


def batch(size, boxes):
    samples = []
    for _ in range(2):
        sample = DetDataSample(metainfo=dict(img_shape=(size, size), pad_shape=(size, size)))
        sample.gt_instances = InstanceData(bboxes=torch.tensor(boxes), labels=torch.arange(len(boxes)))
        sample.ignored_instances = InstanceData(bboxes=torch.tensor(boxes), labels=torch.arange(len(boxes)))
        samples.append(sample)
    return torch.zeros(2, 3, size, size), samples


def run_multi_scale(seed, steps, monkeypatch):
    monkeypatch.setattr('yolov7_simple.models.multi_scale.sync_random_seed', lambda: seed)
    hub = MessageHub.get_instance('multi_scale')
    monkeypatch.setattr(MessageHub, 'get_current_instance', classmethod(lambda cls: hub))
    resize, sizes = BatchMultiScale((32, 96)), []
    for step in steps:
        hub.update_info('iter', step)
        inputs, samples = resize(*batch(64, [[0.0, 0.0, 30.0, 30.0], [0.0, 0.0, 40.0, 9.0]]))
        assert inputs.shape[2] == inputs.shape[3]
        sizes.append(inputs.shape[2])
        assert hub.get_scalar('train/img_size').current() == sizes[-1]
        scale = sizes[-1] / 64
        for instances in (samples[0].gt_instances, samples[1].ignored_instances):
            kept = [0] + [1] * (9 * scale >= 8)
            assert instances.labels.tolist() == kept
            torch.testing.assert_close(instances.bboxes[0], torch.tensor([0, 0, 30, 30]) * scale)
    return sizes


def test_multi_scale_changes_the_size_each_step_alike_on_all_ranks(monkeypatch):
    sizes = run_multi_scale(0, range(40), monkeypatch)
    assert set(sizes) == {32, 64, 96}
    assert run_multi_scale(0, range(40), monkeypatch) == sizes
    assert run_multi_scale(1, range(40), monkeypatch) != sizes
    # A resumed run draws the same sizes; only its first step keeps that of the images.
    assert run_multi_scale(0, range(20, 40), monkeypatch)[1:] == sizes[21:]


@pytest.mark.parametrize('arguments', [dict(random_size_range=(96, 32)), dict(random_size_range=(100, 200))])
def test_mistakes_in_multi_scale_are_named(arguments):
    with pytest.raises(ValueError, match='random_size_range'):
        BatchMultiScale(**arguments)
    with pytest.raises(ValueError, match='interval'):
        BatchMultiScale((32, 64), interval=0)


# Against mmdet


class CenteredRandomAffine(RandomAffine):
    """mmdet's affine, changed to scale and rotate about the canvas' centre, as in the original, and not its corner."""

    def _get_random_homography_matrix(self, height, width):
        matrix = super()._get_random_homography_matrix(height, width)
        return geometry.translation(width / 2, height / 2) @ matrix @ geometry.translation(-width, -height)


def statistics_of(dataset, num_samples):
    """Means of properties of samples, with their standard errors."""
    rows = []
    for i in range(num_samples):
        sample = dataset[i % len(dataset)]
        image = sample['inputs'].numpy().astype(np.float32)
        boxes = sample['data_samples'].gt_instances.bboxes.numpy()
        sides = np.maximum(boxes[:, 2:] - boxes[:, :2], 1)
        rows.append(
            dict(
                boxes=len(boxes),
                log_area=np.log(sides.prod(1)).mean() if len(boxes) else np.nan,
                log_aspect=np.log(sides[:, 0] / sides[:, 1]).mean() if len(boxes) else np.nan,
                padding=(image == 114).all(0).mean(),
                pixel_mean=image.mean(),
                pixel_std=image.std(),
            )
        )
    table = {key: np.array([row[key] for row in rows]) for key in rows[0]}
    return {key: (np.nanmean(values), np.nanstd(values) / num_samples**0.5) for key, values in table.items()}


@pytest.mark.skipif(not COCO_MINI.is_dir(), reason=f'needs the images in {COCO_MINI}, which is absent')
def test_samples_are_distributed_as_those_of_mmdet(mmdet_statistics):
    """Means differ by at most 3 standard errors and, for what the interpolation changes, 5%."""
    dataset = DATASETS.build(
        coco_mini(
            'SeededMixDataset',
            [LOADER],
            [
                dict(type='MosaicAffineMixUp', img_scale=(320, 320)),
                dict(type='PackDetInputs'),
            ],
        )
    )
    np.random.seed(0)
    for key, (mean, error) in statistics_of(dataset, 300).items():
        other_mean, other_error = mmdet_statistics[key]
        slack = 0.05 * abs(other_mean) if key.startswith('pixel') else 0
        assert abs(mean - other_mean) <= 3 * np.hypot(error, other_error) + slack, (key, mean, other_mean, error)


def coco_mini(wrapper, loading, pipeline):
    return dict(
        type=wrapper,
        dataset=dict(
            type='CocoDataset',
            data_root=f'{COCO_MINI}/',
            ann_file='annotations/instances_train2017.json',
            data_prefix=dict(img='train2017/'),
            pipeline=loading,
        ),
        pipeline=pipeline,
    )


@pytest.fixture(scope='module')
def mmdet_statistics():
    TRANSFORMS.register_module(module=CenteredRandomAffine, force=True)
    scale = (320, 320)
    pipeline = [
        dict(type='Mosaic', img_scale=scale),
        dict(type='CenteredRandomAffine', scaling_ratio_range=(0.1, 2.0), border=(-160, -160)),
        # The original's range; mmdet's YOLOX has 0.8 to 1.6. mmdet's MixUp does not mix in images without boxes.
        dict(type='MixUp', img_scale=scale, ratio_range=(0.5, 1.5)),
        dict(type='RandomFlip', prob=0.5),
        dict(type='FilterAnnotations', min_gt_bbox_wh=(1, 1), keep_empty=False),
        dict(type='PackDetInputs'),
    ]
    dataset = DATASETS.build(coco_mini('MultiImageMixDataset', [dict(type='LoadImageFromFile'), LOADER], pipeline))
    np.random.seed(1)
    random.seed(1)
    return statistics_of(dataset, 300)
