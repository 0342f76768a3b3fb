"""Files of labels as texts, XML and JSON, in the encodings that tools write, and the values in them, checked."""

from __future__ import annotations

import codecs
import json
import math
import re
from typing import Any
from xml.etree import ElementTree

from ...runtime.errors import InputError
from ..files import Files
from ..names import with_suffix

MARKS = ((codecs.BOM_UTF8, 'utf-8-sig'), (codecs.BOM_UTF16_LE, 'utf-16'), (codecs.BOM_UTF16_BE, 'utf-16'))
DECLARATION = re.compile(rb'\s*<\?xml[^>]*?encoding\s*=\s*["\']([\w.:-]+)["\']')
KIND_NAMES = {dict: 'an object', list: 'a list', str: 'a text'}
MAX_SHOWN = 60


def quote(value: Any) -> str:
    """A value for a message."""
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f'{text[:MAX_SHOWN]}...'


def read_bytes(files: Files, file: str) -> bytes:
    """Read a file of labels.

    Raises:
        InputError: It cannot be read, or is empty.
    """
    try:
        data = files.path(file).read_bytes()
    except OSError as error:
        raise InputError(f'{files.path(file)}: cannot be read: {error.strerror or error}') from error
    if not data.strip(b'\0 \t\r\n'):
        raise InputError(f'{files.path(file)}: is empty')
    return data


def decode(files: Files, file: str, data: bytes, declared: str = 'utf-8') -> str:
    """The text of a file, by its byte-order mark or else in the declared encoding.

    Raises:
        InputError: It is in another one.
    """
    encoding = next((encoding for mark, encoding in MARKS if data.startswith(mark)), declared)
    # What calls itself GB2312 mostly has characters of the larger GBK.
    encoding = 'gb18030' if encoding.lower() in ('gb2312', 'gbk') else encoding
    try:
        return data.decode(encoding)
    except (UnicodeError, LookupError) as error:
        raise InputError(f'{files.path(file)}: is not {encoding} ({error}): save it as UTF-8') from error


def read_text(files: Files, file: str) -> str:
    """Read a text in UTF-8, or UTF-16 with a byte-order mark.

    Raises:
        InputError: It cannot be read.
    """
    return decode(files, file, read_bytes(files, file))


def read_xml(files: Files, file: str) -> ElementTree.Element:
    """Read XML, and return its root.

    Raises:
        InputError: It cannot be read.
    """
    data = read_bytes(files, file)
    declared = DECLARATION.match(data)
    # Python decodes it, as its XML parser knows few encodings.
    text = decode(files, file, data, declared[1].decode() if declared else 'utf-8')
    try:
        return ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError) as error:
        raise InputError(f'{files.path(file)}: not XML, or cut short: {error}') from error


def has_tag(files: Files, file: str, tag: str) -> bool:
    """Whether an XML file, which may be cut short, has such an element near its beginning."""
    try:
        with files.path(file).open('rb') as opened:
            start = opened.read(2000).replace(b'\0', b'')  # UTF-16 becomes ASCII here
    except OSError:
        return False
    return re.search(rf'<{tag}[\s>]'.encode(), start) is not None


def read_document(files: Files, file: str) -> Any:
    """Read JSON.

    Raises:
        InputError: It cannot be read.
    """
    try:
        return json.loads(read_text(files, file))
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f'{files.path(file)}: not JSON, or cut short: {error}') from error


def json_files(files: Files, *keys: str) -> list[str]:
    """The JSON files that have some keys somewhere, found without reading their structure, which may take long."""
    wanted = [f'"{key}"' for key in keys]

    def has_keys(file: str) -> bool:
        try:
            data = files.path(file).read_bytes()
        except OSError:
            return False  # refused by its reader, if it is one of several
        if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            data = data.decode('utf-16', 'replace').encode()
        return all(key.encode() in data for key in wanted)

    unknown = [file for file in with_suffix(files.names, {'.json'}) if file not in files.known_json]
    return [file for file in unknown if has_keys(file)]


def to_number(value: Any, what: str, where: str) -> float:
    """A finite number, which may be written as a text.

    Raises:
        InputError: It is none.
    """
    try:
        result = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        result = math.nan
    if not math.isfinite(result):
        raise InputError(f'{where}: {what} must be a number, got {quote(value)}')
    return result


def member(record: Any, key: str, kind: type, where: str) -> Any:
    """A value of a JSON object.

    Raises:
        InputError: It is not there, or of another kind.
    """
    if not isinstance(record, dict):
        raise InputError(f'{where}: must be an object, got {quote(record)}')
    if not isinstance(record.get(key), kind):
        raise InputError(f'{where}: {key} must be {KIND_NAMES[kind]}, got {quote(record.get(key))}')
    return record[key]


def points_of(value: Any, where: str, minimum: int = 1) -> list[tuple[float, float]]:
    """Points from a list of pairs.

    Raises:
        InputError: They are none, or too few.
    """
    if not isinstance(value, list) or len(value) < minimum:
        raise InputError(f'{where}: must have at least {minimum} points, got {quote(value)}')
    if not all(isinstance(point, (list, tuple)) and len(point) == 2 for point in value):
        raise InputError(f'{where}: points must be pairs of numbers, got {quote(value)}')
    return [(to_number(x, 'x', where), to_number(y, 'y', where)) for x, y in value]
