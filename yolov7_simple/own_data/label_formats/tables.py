"""CSV tables, a row a box, with columns known by their names: of Roboflow, TensorFlow, Kaggle, Open Images."""

from __future__ import annotations

import csv
import io
import re
from pathlib import PurePosixPath
from typing import NamedTuple

from ...runtime.errors import InputError, examples
from ..files import Files
from ..findings import Findings
from ..labels import Labels
from ..names import split_in, split_of_file, with_suffix
from ..sizes import read_headers
from .collector import ONLY_CLASS, Collector
from .documents import quote, read_text, to_number

# Names of columns in lower case, letters and digits alone; those that come first are surer.
ROLES = {
    'image': 'filename file imagefilename imagepath filepath path imagename imagefile imgname imgpath image imageid '
    'img imgid patientid',
    'class': 'class classname label labelname category categoryname objectclass species target name classid labelid '
    'categoryid',
    'x1': 'xmin x1 left xtl',
    'y1': 'ymin y1 top ytl',
    'x2': 'xmax x2 right xbr',
    'y2': 'ymax y2 bottom ybr',
    'cx': 'xcenter centerx cx',
    'cy': 'ycenter centery cy',
    'x': 'x',
    'y': 'y',
    'w': 'width w',
    'h': 'height h',
    'box': 'bbox box boundingbox',
    'image width': 'imagewidth imgwidth imgw',
    'image height': 'imageheight imgheight imgh',
    'split': 'split subset set dataset',
    'crowd': 'isgroupof iscrowd',
}
# What a table of one class may have beside its boxes; another column may be the class under a name of its own.
SIDE_COLUMNS = {'', 'unnamed0', 'index', 'id', 'source', 'width', 'height', 'confidence', 'area', 'fold', 'depth'}
SIDES = ('x1', 'y1', 'x2', 'y2'), ('cx', 'cy', 'w', 'h'), ('x', 'y', 'w', 'h'), ('box',)
MAX_FRACTION_ROUNDING = 1.0  # pixels that a box may leave its image by


class Row(NamedTuple):
    """A line of a table: where it stands, and its cells by role."""

    where: str
    cells: dict[str, str]


class Table(NamedTuple):
    """A CSV file: the roles that say where the box is, and its rows."""

    file: str
    sides: tuple[str, ...]
    rows: list[Row]


def read_tables(files: Files, findings: Findings) -> Labels | None:
    """Read tables of boxes.

    Raises:
        InputError: A row cannot be read, or columns can be understood in two ways.
    """
    collector = Collector('CSV', files, findings)
    names: dict[str, str] = {}
    tables: list[Table] = []
    others: list[tuple[str, str]] = []
    broken: list[InputError] = []
    for file in with_suffix(files.names, {'.csv'}):
        if b'region_shape_attributes' in files.path(file).read_bytes()[:1000]:
            continue  # of VIA
        try:
            rows = read_rows(files, file)
        except InputError as error:
            broken.append(error)
            continue
        table = find_columns(file, rows)
        if isinstance(table, Table):
            tables.append(table)
        elif 'classdescriptions' in plain(PurePosixPath(file).stem):
            names |= {cells[0]: cells[1] for _, cells in rows if len(cells) > 1}
        else:
            others.append((file, table))
    if tables and broken:
        raise broken[0]
    for error in broken:
        findings.remark(str(error))
    for table in tables:
        read_table(table, names, collector)
    found = collector.labels(tables[0].file if tables else '')
    if found:
        findings.leave_out('CSV files without boxes', [file for file, _ in others])
    else:
        for file, problem in others:
            findings.remark(f'{file}: {problem}')
    return found


def plain(name: str) -> str:
    """A name of a column without what differs between tools."""
    return re.sub('[^a-z0-9]', '', name.lower())


def read_rows(files: Files, file: str) -> list[tuple[str, list[str]]]:
    """The rows of a CSV file that are not blank, and where each stands, separated by what separates the first.

    Raises:
        InputError: It cannot be read.
    """
    text = read_text(files, file)
    first = text.lstrip().partition('\n')[0]
    reader = csv.reader(io.StringIO(text), delimiter=max(',;\t', key=first.count), skipinitialspace=True)
    try:
        return [
            (f'{file}, line {reader.line_num}', [cell.strip() for cell in cells])
            for cells in reader
            if any(map(str.strip, cells))
        ]
    except csv.Error as error:
        raise InputError(f'{files.path(file)}, line {reader.line_num}: cannot be read: {error}') from error


def find_columns(file: str, rows: list[tuple[str, list[str]]]) -> Table | str:
    """Tell the columns by the names in the first row, or take the six of RetinaNet's form, which has no names.

    Returns:
        The table, or why it is none.

    Raises:
        InputError: A row has more or fewer cells than there are columns, or two columns could be the class.
    """
    header = rows[0][1] if rows else []
    if len(header) == 6 and (not any(header[1:5]) or all(map(has_number, header[1:5]))):
        roles, sides = ['image', *SIDES[0], 'class'], SIDES[0]
    else:
        columns = [re.sub('^(bbox|box|roi)(?=.)', '', plain(name)) for name in header]
        columns = ['box' if name in ROLES['box'].split() else name for name in columns]
        found = {role: [name for name in known.split() if name in columns] for role, known in ROLES.items()}
        sides = next((sides for sides in SIDES if all(found[role] for role in sides)), None)
        if sides is None or not found['image']:
            return f'its columns are {", ".join(header)}: those of an image and of a box are not among them'
        classes = [name for name in found['class'] if name != 'name' and not name.endswith('id')]
        if len(classes) > 1:
            raise InputError(
                f'{file}: the columns {" and ".join(classes)} could both be the class: rename or remove one'
            )
        roles = [''] * len(columns)
        for role, candidates in found.items():
            # Width and height are the box's only where it has no corners.
            if candidates and (role in sides or role not in sum(SIDES, ())):
                roles[columns.index(candidates[0])] = role
        for side in ('width', 'height') if 'w' not in sides else ():
            if side in columns and f'image {side}' not in roles:
                roles[columns.index(side)] = f'image {side}'
        if 'class' not in roles:
            others = [
                name for name, column, role in zip(header, columns, roles) if not role and column not in SIDE_COLUMNS
            ]
            if others:
                raise InputError(
                    f'{file}: no column is called class, and {examples(others)} could be it: name the one that is class'
                )
        rows = rows[1:]
    for where, cells in rows:
        if len(cells) != len(roles):
            raise InputError(f'{where}: has {len(cells)} cells, but there are {len(roles)} columns')
    return Table(file, sides, [Row(where, dict(zip(roles, cells))) for where, cells in rows])


def has_number(text: str) -> bool:
    """Whether a cell has a number."""
    return re.fullmatch(r'[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?', text, re.IGNORECASE) is not None


def read_table(table: Table, names: dict[str, str], collector: Collector) -> None:
    """Read the boxes of a table.

    Args:
        table: The table.
        names: Of classes by their codes, may be empty.
        collector: Gets the images.

    Raises:
        InputError: A row cannot be read.
    """
    images: dict[str, list[Row]] = {}
    for row in table.rows:
        if not row.cells['image']:
            raise InputError(f'{row.where}: names no image')
        images.setdefault(row.cells['image'], []).append(row)
    split = split_of_file(table.file)
    found = {name: collector.files.find_image(name, table.file, split) for name in images}
    headers = read_headers(collector.files, sorted({image for image in found.values() if image}))
    sizes = {name: headers[image][:2] for name, image in found.items() if image}
    numbers = {row.where: read_sides(row, table.sides) for rows in images.values() for row in rows}
    used = [(values, sizes[name]) for name in sizes for row in images[name] if (values := numbers[row.where])]
    is_corners = 'x1' in table.sides or ('box' in table.sides and has_corners(table.file, used))
    largest = max((max(map(abs, values)) for values in numbers.values() if values), default=0)
    is_fractions = 0 < largest <= 1
    if table.rows and 'class' not in table.rows[0].cells:
        collector.findings.remark(f'{table.file} has no column of classes: all boxes are of one, called {ONLY_CLASS}')
    for name, rows in images.items():
        boxes = []
        for row in rows:
            values = numbers[row.where]
            if values is None:
                continue
            x, y, w, h = values
            if 'cx' in table.sides:
                x, y = x - w / 2, y - h / 2
            corners = (x, y, w, h) if is_corners else (x, y, x + w, y + h)
            if is_fractions and name in sizes:
                corners = tuple(value * side for value, side in zip(corners, sizes[name] * 2))
                collector.findings.repair('boxes in fractions of the image', row.where)
            label = row.cells.get('class', ONLY_CLASS)
            boxes.append(
                collector.box(
                    row.where, names.get(label, label), corners, row.cells.get('crowd') in ('1', 'True', 'true')
                )
            )
        first = rows[0]
        size = tuple(
            to_number(first.cells.get(f'image {side}') or 0, f'image {side}', first.where)
            for side in ('width', 'height')
        )
        own_split = split_in(first.cells.get('split', '')) or split
        is_stated = min(size) > 0 and not is_fractions
        collector.add(found[name], boxes, f'{table.file}, image {name}', size if is_stated else None, own_split)


def read_sides(row: Row, sides: tuple[str, ...]) -> list[float] | None:
    """The four numbers of a box; None: their cells are empty, the image shows background.

    Raises:
        InputError: They are not four numbers.
    """
    if sides == ('box',):
        text = row.cells['box']
        if text.lower() in ('', 'nan', '[]'):
            return None
        cells = re.split(r'[\s,]+', text.strip('[](){} '))
        if len(cells) != 4:
            raise InputError(f'{row.where}: a box must be four numbers, got {quote(text)}')
    else:
        cells = [row.cells[side] for side in sides]
        if all(cell.lower() in ('', 'nan') for cell in cells):
            return None
    return [to_number(cell, 'a side of the box', row.where) for cell in cells]


def has_corners(file: str, boxes: list[tuple[list[float], tuple[int, int]]]) -> bool:
    """Whether boxes of four numbers that are not named are corners, and not a corner, width and height.

    Raises:
        InputError: Both are possible for all of them.
    """
    is_corners = all(values[2] > values[0] and values[3] > values[1] for values, _ in boxes)
    is_sides = all(
        x + w <= width + MAX_FRACTION_ROUNDING and y + h <= height + MAX_FRACTION_ROUNDING
        for (x, y, w, h), (width, height) in boxes
    )
    if boxes and is_corners and is_sides:
        raise InputError(
            f'{file}: the numbers of its boxes could be x, y, width, height as well as two corners: give each a column '
            'of its own, called xmin, ymin, xmax, ymax or x, y, width, height'
        )
    return is_corners and bool(boxes)
