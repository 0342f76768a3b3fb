"""The tool that checks a set: what it counts, what it finds, and that it ends without a traceback."""

import re

import cv2
import pytest
from conftest import ROOT, png_bomb, write_coco
from tool_runs import tool


def test_a_good_set_is_counted_and_drawn(tmp_path):
    write_coco(tmp_path / 'data')
    data = tmp_path / 'data'
    output = tool('check_dataset.py', '--ann', data / 'annotations/all.json', '--images', data / 'images',
                  '--out-dir', tmp_path / 'out', '--workers', 1)  # fmt: skip
    assert '8 images, 1 without a box; 7 boxes' in output and '0 of 8 images are missing' in output
    assert re.search(r'box +4 +', output) and re.search(r'disc +3 +', output)
    page = (tmp_path / 'out/index.html').read_text()
    assert page.count('data:image/svg') >= 5 and page.count('data:image/jpeg') >= 4 and 'None was found' in page


def test_all_that_is_wrong_is_named(tmp_path):
    config, data = tmp_path / 'config.py', tmp_path / 'data'
    content = write_coco(data)
    (data / 'images/2.png').write_bytes(png_bomb(30000, 30000))
    cv2.imwrite(str(data / 'images/3.png'), cv2.imread(str(data / 'images/3.png'))[:50])
    write_coco(tmp_path / 'broken')
    path = tmp_path / 'broken/annotations/all.json'
    path.write_text(path.read_text().replace('"iscrowd": 0', '"iscrowd": "no"', 1))
    base = ROOT / 'configs/yolov7/yolov7_tiny_8xb16-300e_coco.py'
    config.write_text(
        f"_base_ = {str(base)!r}\n"
        "common = dict(ann_file='annotations/all.json', data_prefix=dict(img='images/'), "
        "metainfo=dict(classes=('box', 'disc')))\n"
        f"train_dataloader = dict(dataset=dict(dataset=dict(common, data_root={str(data)!r})))\n"
        f"val_dataloader = dict(dataset=dict(common, data_root={str(tmp_path / 'broken')!r}))\n"
        'test_dataloader = val_dataloader\n'
    )  # fmt: skip
    output = tool('check_dataset.py', config, '--out-dir', tmp_path / 'out', '--workers', 1, ok=False)
    assert 'Traceback' not in output
    assert len(content['images']) == 8 and '2 of 8 images are missing, damaged' in output
    assert '2.png claims to have more than 179 million pixels' in output
    assert '3.png is 96 x 50 pixels, annotated as 96 x 64' in output
    assert "annotations[0] (id 1): iscrowd must be 0 or 1, got 'no'" in output
    assert '=== train' in output and '=== val' in output and '=== test' not in output  # the same set as val


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ([], 'name a config, or --data, or --ann and --images'),
        (['none.py'], 'none.py: no such config file'),
        (['--ann', 'none.json', '--images', '.'], 'No annotation file at'),
    ],
)
def test_mistakes_end_with_a_message(tmp_path, arguments, message):
    output = tool('check_dataset.py', *arguments, '--out-dir', tmp_path / 'out', ok=False)
    assert message in output and 'Traceback' not in output and not (tmp_path / 'out').exists()
