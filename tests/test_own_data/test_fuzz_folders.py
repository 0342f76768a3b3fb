"""Right folders, damaged at random: what is read is right, or left out and counted, or refused by the name of a file.

Nothing else may come of it: no other exception, no box on another image or of another class, no image in another split.
``YOLOV7_FUZZ=2000`` draws so many new ones. A form is added by a row in FORMS, a damage by a row in DAMAGES.
"""

import json
import os
import random
import re
import shutil
import tempfile
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from folder_cases import CLASSES, coco_content, photos, write_photo, write_text
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_labelme import write_labelme
from test_voc import write_voc
from test_yolo import write_yolo

from yolov7_simple.own_data.folder import read_own_data
from yolov7_simple.own_data.label_formats import READERS
from yolov7_simple.runtime.errors import InputError

NUM_EXAMPLES = int(os.environ.get('YOLOV7_FUZZ', 100))
NAMES = {3: 'Crème brûlée 3', 6: 'photo (6)', 1: 'val_1'}  # of some photographs: accents, blanks, another split's word
PHOTOS = [photo.renamed(NAMES.get(i, photo.stem)) for i, photo in enumerate(photos(8))]
SPLITS = {'train': PHOTOS[:5], 'val': PHOTOS[5:]}


def write_coco_folder(folder, splits):
    for split, part in splits.items():
        for photo in part:
            write_photo(photo, folder / split / f'{photo.stem}.jpg')
        write_text(folder / 'annotations' / f'instances_{split}.json', json.dumps(coco_content(part)))


def write_voc_folder(folder, splits):
    for split, part in splits.items():
        write_voc(folder, [part], f'{split}/images', f'{split}/annotations')


def write_labelme_folder(folder, splits):
    for split, part in splits.items():
        write_labelme(folder / split, part)


# Form -> what writes it, and its label file of an image; None: one is for all images of a split.
FORMS = {
    'YOLO': (write_yolo, lambda split, stem: f'labels/{split}/{stem}.txt', 'images/{}/{}.jpg'),
    'VOC': (write_voc_folder, lambda split, stem: f'{split}/annotations/{stem}.xml', '{}/images/{}.jpg'),
    'COCO': (write_coco_folder, None, '{}/{}.jpg'),
    'labelme': (write_labelme_folder, lambda split, stem: f'{split}/{stem}.json', '{}/{}.jpg'),
}
SUFFIXES = ('.jpg', '.png')
FORMS = {form: row for form, row in FORMS.items() if form in READERS}


class Folder:
    """A folder and its truth.

    Attributes:
        truth: Image -> split and boxes that its label states, paths relative to the folder.
        labels: Label file -> its image, whether that is still there or not; none where one is for all.
        copies: Copy of an image under its own stem -> boxes of that image.
        harmless: All damages so far leave a folder that must be read.
    """

    def __init__(self, root, form):
        _, label, image = FORMS[form]
        self.root, self.harmless = root, True
        self.truth, self.labels, self.copies = {}, {}, {}
        for split, part in SPLITS.items():
            for photo in part:
                path = image.format(split, photo.stem)
                self.truth[path] = (split, list(photo.boxes))
                if label:
                    self.labels[label(split, photo.stem)] = path

    def files(self):
        return sorted(path.relative_to(self.root).as_posix() for path in self.root.rglob('*') if path.is_file())

    def images(self):
        return sorted(path for path in self.truth if (self.root / path).is_file())

    def texts(self):
        """Label files with a line a box, and their content."""
        paths = (path for path in self.labels if path.endswith('.txt') and (self.root / path).is_file())
        found = {path: (self.root / path).read_bytes() for path in paths}
        return {path: data for path, data in sorted(found.items()) if data.isascii() and data.endswith(b'\n')}

    def move(self, path, target):
        """Rename a file, and the truth with it; not onto another."""
        if path == target or (self.root / target).exists():
            return
        (self.root / path).rename(self.root / target)
        if path in self.truth:
            self.truth[target] = self.truth.pop(path)
        if path in self.labels:
            self.labels[target] = self.labels.pop(path)
        for label, image in self.labels.items():
            if image == path:
                self.labels[label] = target

    def set_boxes(self, label, lines):
        """The truth is what the lines of a label say, where all are whole; others stay refused."""
        image = self.labels[label]
        if image in self.truth and all(re.fullmatch(rb'\d( [\d.]+){4}\s*', line) for line in lines):
            rows = [list(map(float, line.split())) for line in lines]
            boxes = [
                (CLASSES[int(i)], (x - w / 2) * 96, (y - h / 2) * 64, (x + w / 2) * 96, (y + h / 2) * 64)
                for i, x, y, w, h in rows
                if i < len(CLASSES)
            ]
            self.truth[image][1][:] = boxes  # of its copies, too

    def label_of(self, image):
        return next((label for label, own in self.labels.items() if own == image), None)


def delete(folder, rng):
    folder.harmless = False
    path = rng.choice(folder.files())
    (folder.root / path).unlink()


def double_image(folder, rng):
    """A copy beside it, of another name or suffix, or in a folder of masks."""
    folder.harmless = False
    path = Path(rng.choice(folder.images()))
    target = rng.choice(
        [path.with_name(f'{path.stem} copy.jpg'), path.with_suffix('.png'), Path('masks') / path.name, Path(path.name)]
    )
    if (folder.root / target).exists():
        return
    (folder.root / target).parent.mkdir(exist_ok=True)
    shutil.copy(folder.root / path, folder.root / target)
    if target.parts[0] != 'masks':
        if target.stem == path.stem:
            folder.copies[target.as_posix()] = folder.truth[path.as_posix()][1]
        folder.truth[target.as_posix()] = (folder.truth[path.as_posix()][0] if len(target.parts) > 1 else None, [])


def double_label(folder, rng):
    """A copy elsewhere."""
    if folder.labels:
        folder.harmless = False
        path = rng.choice(sorted(folder.labels))
        if (folder.root / path).is_file():
            target = rng.choice(
                [f'old_{path}', f'labels/{Path(path).name}', f'{path}.bak', f'backup/{Path(path).name}']
            )
            (folder.root / target).parent.mkdir(exist_ok=True, parents=True)
            shutil.copy(folder.root / path, folder.root / target)


def rename_alike(folder, rng):
    """Another case, another Unicode form."""
    path = Path(rng.choice(sorted({*folder.images(), *(p for p in folder.labels if (folder.root / p).is_file())})))
    stem, suffix = path.stem, path.suffix
    forms = [unicodedata.normalize(form, stem) for form in ('NFC', 'NFD')]
    name = rng.choice(
        [stem.upper() + suffix, stem + suffix.upper(), stem.title() + suffix, *(f + suffix for f in forms)]
    )
    folder.move(path.as_posix(), path.with_name(name).as_posix())


def rename_otherwise(folder, rng):
    """Blanks in it or gone, another suffix, another name."""
    folder.harmless = False
    path = Path(rng.choice(sorted({*folder.images(), *(p for p in folder.labels if (folder.root / p).is_file())})))
    names = [
        f' {path.name}',
        f'{path.stem} {path.suffix}',
        path.name.replace(' ', '_'),
        f'{path.name}.bak',
        'x' + path.name,
    ]
    folder.move(path.as_posix(), path.with_name(rng.choice(names)).as_posix())


def truncate(folder, rng):
    """Cut any file; a label either at the end of a line, which nobody can tell, or before its last number."""
    path = rng.choice(folder.files())
    data = (folder.root / path).read_bytes()
    if path in folder.labels and path.endswith('.txt'):
        if path not in folder.texts():
            return
        lines = [line for line in data.split(b'\n') if line.strip()]
        count = rng.randrange(len(lines) + 1)
        kept = b''.join(line + b'\n' for line in lines[:count])
        if count < len(lines) and rng.random() < 0.5:
            kept += lines[count][: max(1, rng.randrange(lines[count].rstrip().rindex(b' ')))]
        else:
            folder.set_boxes(path, lines[:count])
        data = kept
    else:
        data = data[: rng.randrange(len(data) + 1)]
    folder.harmless = False
    (folder.root / path).write_bytes(data)


def encode(folder, rng):
    """Another encoding of a text; a byte-order mark and line ends harm nothing."""
    paths = [path for path in folder.files() if Path(path).suffix.lower() in ('.txt', '.yaml', '.json', '.xml')]
    if not paths:
        return
    path = folder.root / rng.choice(paths)
    try:
        text = path.read_bytes().decode()
    except UnicodeError:
        return
    kind = rng.choice(['bom', 'crlf', 'utf-16', 'latin-1'])
    if kind == 'bom':
        data = text.encode('utf-8-sig') if not text.startswith('\ufeff') else text.encode()
    elif kind == 'crlf':
        data = re.sub('\r?\n', '\r\n', text).encode()
    else:
        folder.harmless = False
        data = text.encode(kind, 'replace')
    path.write_bytes(data)


def swap_lines(folder, rng):
    texts = folder.texts()
    if texts:
        path = rng.choice(list(texts))
        lines = texts[path].split(b'\n')[:-1]
        rng.shuffle(lines)
        (folder.root / path).write_bytes(b''.join(line + b'\n' for line in [*lines, b'', b' \t']))


def double_line(folder, rng):
    """A line twice is a box twice, which the doctor tells."""
    texts = {
        path: text for path, text in folder.texts().items() if text.strip() and folder.labels[path] in folder.truth
    }
    if texts:
        path = rng.choice(list(texts))
        lines = [line for line in texts[path].split(b'\n') if line.strip()]
        lines.append(rng.choice(lines))
        (folder.root / path).write_bytes(b''.join(line + b'\n' for line in lines))
        folder.set_boxes(path, lines)


def spoil_line(folder, rng):
    """A line that says nothing."""
    texts = folder.texts()
    if texts:
        folder.harmless = False
        path = rng.choice(list(texts))
        line = rng.choice(
            [b'cat', b'0 0.5 0.5', b'9 0.5 0.5 0.1 0.1', b'0 nan 0.5 0.1 0.1', b'0 0,5 0.5 0.1 0.1 x', b'\xff\xfe']
        )
        (folder.root / path).write_bytes(texts[path] + line + b'\n')


def add_stray(folder, rng):
    """A file that is no part of the set."""
    folder.harmless = False
    path, data = rng.choice(
        [
            ('README.txt', b'Blood cells, 2024.\nTaken by 3 people\n'),
            ('notes/readme.md', b'# x'),
            ('Thumbs.db', bytes(100)),
            ('labels/train/.DS_Store', bytes(100)),
            ('classes.txt', b'owl\ncat\ndog\n'),
            ('labels/train/classes.txt', b'cat\ndog\nowl\n'),
            ('labels/val/notes.txt', b'to do: 3\n'),
            ('results.json', b'[{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}]'),
            ('numbers.txt', b'0 0.5 0.5 0.1 0.1\n'),
            ('hyp.yaml', b'lr0: 0.01\nmomentum: 0.9\n'),
            ('empty.json', b''),
            ('runs/train/args.yaml', b'data: x\n'),
        ]
    )
    if not (folder.root / path).exists():
        (folder.root / path).parent.mkdir(exist_ok=True, parents=True)
        (folder.root / path).write_bytes(data)


DAMAGES = [
    delete, double_image, double_label, rename_alike, rename_otherwise, truncate, encode, swap_lines, double_line,
    spoil_line, add_stray,
]  # fmt: skip


def read_boxes(data):
    """Image -> split and boxes, from the files that training reads."""
    found = {}
    for split, part in data.splits.items():
        content = json.loads(part.ann_file.read_text(encoding='utf-8-sig'))
        names = {one['id']: one['name'] for one in content['categories']}
        paths = {}
        for one in content['images']:
            paths[one['id']] = f'{part.img_dir}{one["file_name"]}'
            assert (data.root / paths[one['id']]).is_file()
            assert paths[one['id']] not in found, 'an image is used twice'
            found[paths[one['id']]] = (split, [])
        for one in content['annotations']:
            x, y, w, h = one['bbox']
            found[paths[one['image_id']]][1].append((names[one['category_id']], x, y, x + w, y + h))
    return found


def read_text(path):
    return path.read_bytes().decode('utf-8-sig', 'replace')


def are_equal(boxes, wanted):
    """Same classes at the same places within a pixel, in any order."""
    boxes, wanted = sorted(boxes), sorted(wanted)
    return [box[0] for box in boxes] == [box[0] for box in wanted] and all(
        np.abs(np.subtract(a[1:], b[1:])).max() <= 1 for a, b in zip(boxes, wanted)
    )


def check(folder, out_dir):
    names = {Path(path).name for path in [*folder.files(), *folder.truth, *folder.labels]}
    try:
        data = read_own_data(folder.root, out_dir)
    except InputError as error:
        assert not folder.harmless, f'refused, and is right: {error}'
        assert str(folder.root) in str(error) or any(name in str(error) for name in names), f'names no file: {error}'
        assert '\n' not in str(error)
        return
    if data.classes != CLASSES:  # a list of names in another order counts only where data.yaml is gone
        assert not any(str(list(CLASSES)) in read_text(path) for path in folder.root.glob('*.yaml'))
        assert data.classes in [tuple(read_text(path).split()) for path in folder.root.rglob('classes.txt')]
        return
    told = '\n'.join(data.findings.lines())
    unused = {name for files in data.findings.unused.values() for name in files}
    found = read_boxes(data)
    bare = []
    for path, (split, boxes) in found.items():
        assert path in folder.truth, f'{path} is no image of the set'
        wanted_split, wanted = folder.truth[path]
        assert split == wanted_split or wanted_split is None or 'random fifth' in told, f'{path} is for {wanted_split}'
        # Without the image a label is of its copy, which has another suffix or lies elsewhere.
        if not are_equal(boxes, wanted) and not (path in folder.copies and are_equal(boxes, folder.copies[path])):
            label = folder.label_of(path)
            # Its label is gone or renamed, which is told; a label that is there and is its own is read or refused.
            assert not boxes, f'{path} has {boxes}, not {wanted}'
            is_its_own = label and Path(label).stem == Path(path).stem and Path(label).suffix.lower() == '.txt'
            assert not (is_its_own and (folder.root / label).is_file()), (
                f'{path} has a label and is taken as background'
            )
            bare.append(path)
    counted = re.search(r'(\d+) images have no label file and are taken as background', told)
    assert len(bare) <= int(counted[1] if counted else 0), f'background without a word: {bare}'
    lost = {path for path in folder.images() if path not in found and Path(path).suffix.lower() in SUFFIXES} - unused
    assert not lost, f'not used without a word: {lost}'
    for label, image in folder.labels.items():
        # Perhaps a copy of its image has it, or it is left out with one.
        used = {*found, *data.findings.unused.get('images of no split', [])} - set(bare)
        is_used = any(Path(path).stem == Path(label).stem for path in used)
        is_there = (folder.root / label).is_file() and Path(label).suffix.lower() in ('.txt', '.xml', '.json')
        if is_there and not is_used and (image in bare or image not in found):
            assert label in unused, f'a label is not used without a word: {label}'


@pytest.fixture(scope='module')
def templates(tmp_path_factory):
    """A right folder of each form, to copy."""
    root = tmp_path_factory.mktemp('forms')
    for form, (write, _, _) in FORMS.items():
        write(root / form, SPLITS)
    return root


@pytest.mark.parametrize('form', FORMS)
@settings(max_examples=NUM_EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(damages=st.lists(st.tuples(st.sampled_from(DAMAGES), st.integers(0, 2**20)), max_size=4))
def test_damaged_folders_are_read_right_or_refused(templates, form, damages):
    with tempfile.TemporaryDirectory() as place:
        root = Path(place).resolve() / 'data'
        shutil.copytree(templates / form, root)
        folder = Folder(root, form)
        for damage, seed in damages:
            if folder.images():
                damage(folder, random.Random(seed))
        check(folder, Path(place) / 'out')
