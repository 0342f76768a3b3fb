"""The page in a real browser. Not run, and said so, where gradio, selenium or Chromium are missing."""

import contextlib
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from functools import partial

import cv2
import numpy as np
import pytest
import web_demo
from conftest import png_bomb
from PIL import Image
from small_model import CLASSES, ROOT, export, write_images, write_model

from yolov7_simple.apis.inference import load_inferencer
from yolov7_simple.runtime.errors import InputError, run_tool

missing = [name for name in ('gradio', 'selenium') if importlib.util.find_spec(name) is None]
missing += [name for name in ('chromium', 'chromedriver') if shutil.which(name) is None]
pytestmark = pytest.mark.skipif(bool(missing), reason=f'the web page is not tested: {", ".join(missing)} missing')
if not missing:
    from selenium import webdriver
    from selenium.common.exceptions import StaleElementReferenceException, TimeoutException
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait

TIMEOUT = 120  # seconds
FLAGS = (
    '--headless',
    '--no-sandbox',
    '--disable-gpu',
    '--disable-quic',
    '--no-first-run',
    '--disable-background-networking',
    '--disable-component-update',
    '--disable-sync',
    '--window-size=1200,900',
)


def free_port():
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """Folder with small.py, small.pth, small.onnx, images/ and what only looks like an image."""
    folder = tmp_path_factory.mktemp('web')
    write_images(folder / 'images')
    config, checkpoint = write_model(folder, max_per_img=30)
    export(load_inferencer(config, checkpoint, 'cpu').model, folder / 'small.onnx', config, (128, 128))
    (folder / 'text.jpg').write_text('I am a text file.')
    rng = np.random.default_rng(0)
    cv2.imwrite(str(folder / 'large.png'), rng.integers(0, 255, (2700, 2700, 3), np.uint8))  # over 20 MB
    return folder


@pytest.fixture(scope='module', params=['onnx', 'config'])
def address(files, request):
    """Serve the page from an ONNX file, and from a config and a checkpoint."""
    port = free_port()
    model = {'onnx': ['small.onnx'], 'config': ['small.py', 'small.pth']}[request.param]
    command = [sys.executable, ROOT / 'tools/web_demo.py', *model, '--port', str(port)]
    log = (files / f'{request.param}.log').open('w+')
    server = subprocess.Popen(command, cwd=files, stdout=log, stderr=subprocess.STDOUT)
    url = f'http://127.0.0.1:{port}'
    try:
        end = time.monotonic() + TIMEOUT
        while True:
            try:
                urllib.request.urlopen(url, timeout=5).close()
                break
            except OSError:
                log.seek(0)
                assert server.poll() is None and time.monotonic() < end, log.read()
                time.sleep(0.5)
        yield url
    finally:
        server.terminate()
        server.wait(timeout=TIMEOUT)
        log.seek(0)
        printed = log.read()
        log.close()
        assert 'Traceback' not in printed, printed


@pytest.fixture
def browser(address, tmp_path):
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which('chromium')
    for flag in (*FLAGS, f'--user-data-dir={tmp_path}/profile'):
        options.add_argument(flag)
    options.add_experimental_option('prefs', {'download.default_directory': str(tmp_path)})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which('chromedriver')))
    try:
        driver.get(address)
        wait(driver).until(lambda page: page.find_elements(By.CSS_SELECTOR, '#upload input[type=file]'))
        yield driver
    finally:
        driver.quit()


def wait(browser, seconds=TIMEOUT):
    # The page replaces rows while they are read.
    return WebDriverWait(browser, seconds, ignored_exceptions=[StaleElementReferenceException])


def upload(browser, path):
    browser.find_element(By.CSS_SELECTOR, '#upload input[type=file]').send_keys(str(path))


def table(browser):
    """Rows of text of the table of detections."""
    rows = browser.find_elements(By.CSS_SELECTOR, '#table [role=row]')
    cells = [[cell.text.strip() for cell in row.find_elements(By.CSS_SELECTOR, '[role=gridcell]')] for row in rows]
    return [row for row in cells if row and row[0] in CLASSES]


def test_an_image_goes_in_and_boxes_come_out(files, browser, tmp_path):
    upload(browser, files / 'images/image2.png')
    wait(browser).until(lambda page: page.find_elements(By.CSS_SELECTOR, '#picture img') and table(page))
    image = browser.find_element(By.CSS_SELECTOR, '#picture img')
    data = urllib.request.urlopen(image.get_attribute('src'), timeout=30).read()
    drawn = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    plain = cv2.imread(str(files / 'images/image2.png'))
    zoom = drawn.shape[0] // plain.shape[0]
    assert (drawn != np.repeat(np.repeat(plain, zoom, 0), zoom, 1)).any()

    wait(browser).until(lambda page: page.find_element(By.CSS_SELECTOR, '#download').is_enabled())
    browser.find_element(By.CSS_SELECTOR, '#download').click()
    wait(browser).until(lambda page: (tmp_path / 'image2.json').is_file())
    content = json.loads((tmp_path / 'image2.json').read_text())
    scores = [one['score'] for one in content['annotations']]
    assert content['images'][0]['file_name'] == 'image2.png' and len(scores) > 3
    assert float(table(browser)[0][1]) == pytest.approx(scores[0], abs=1e-3)

    # A higher threshold leaves fewer.
    middle = round(float(np.median(scores)), 2)
    for seconds in (20, 20, TIMEOUT):  # what is typed while the page is still drawing is lost
        number = browser.find_element(By.CSS_SELECTOR, '#score input[type=number]')
        number.click()
        # At once: of keys one after the other, the page may send what is typed so far.
        browser.execute_script(
            "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input', {bubbles: true}))",
            number,
            str(middle),
        )
        number.send_keys(Keys.TAB)
        with contextlib.suppress(TimeoutException):
            wait(browser, seconds).until(
                lambda page: table(page) and all(float(row[1]) >= middle for row in table(page))
            )
            break
    else:
        pytest.fail(f'no threshold of {middle} after typing it three times: {table(browser)}')
    browser.save_screenshot(str(tmp_path / 'page.png'))


def test_a_text_file_that_calls_itself_a_jpeg_gets_a_message(files, browser):
    upload(browser, files / 'text.jpg')
    wait(browser).until(lambda page: 'text.jpg: not an image' in page.find_element(By.TAG_NAME, 'body').text)
    assert str(files) not in browser.find_element(By.TAG_NAME, 'body').text
    assert not table(browser)


def test_uploads_are_limited_in_size(files, browser):
    upload(browser, files / 'large.png')
    wait(browser).until(lambda page: 'exceed' in page.find_element(By.TAG_NAME, 'body').text.lower())
    assert not browser.find_elements(By.CSS_SELECTOR, '#picture img')


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['none.onnx'], 'none.onnx: no such ONNX file'),
        (['small.py'], 'a config needs a checkpoint'),
        (['small.onnx', 'small.pth'], 'needs no checkpoint'),
        (['small.onnx', '--device', 'cpu'], '--device is not for small.onnx'),
        (['small.onnx', '--port', '70000'], '--port 70000: must be from 1 to 65535'),
        (['small.onnx', '--port', '-1'], '--port -1: must be from 1 to 65535'),
        (['small.onnx', '--port', 'abc'], "invalid int value: 'abc'"),
        (['small.onnx', '--host', 'no.such.host.invalid'], 'port 7860 of no.such.host.invalid: '),
    ],
)
def test_mistakes_get_one_clear_message(files, arguments, message):
    command = [sys.executable, ROOT / 'tools/web_demo.py', *arguments]
    done = subprocess.run(command, cwd=files, capture_output=True, text=True, check=False, timeout=TIMEOUT)
    assert done.returncode != 0 and message in done.stderr and 'Traceback' not in done.stderr


def test_an_option_that_cannot_be_is_one_message(files, tmp_path, monkeypatch):
    config = tmp_path / 'wrong.py'
    config.write_text(f"_base_ = '{files}/small.py'\nmodel = dict(backbone=dict(arch='small'))\n")
    monkeypatch.setattr('sys.argv', ['web_demo.py', str(config), str(files / 'small.pth')])
    with pytest.raises(SystemExit, match='error: ELANNet: arch must be one of'):
        run_tool(partial(web_demo.main, web_demo.parse_args()))


def test_a_port_in_use_is_told_before_the_model_is_loaded(monkeypatch):
    with socket.socket() as other:
        other.bind(('127.0.0.1', 0))
        other.listen()
        port = str(other.getsockname()[1])
        monkeypatch.setattr('sys.argv', ['web_demo.py', 'none.onnx', '--port', port])
        with pytest.raises(SystemExit, match=f'error: port {port} of 127.0.0.1: .*; choose another with --port'):
            run_tool(partial(web_demo.main, web_demo.parse_args()))


def write_upload(path):
    """One upload of each kind that people try."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 255, (40, 60, 3), np.uint8))
    if path.stem in ('cmyk', 'rgba', 'la', 'p', 'i16'):
        image.convert({'i16': 'I;16'}.get(path.stem, path.stem.upper())).save(path)
    elif path.stem == 'animated':
        image.save(path, save_all=True, append_images=[image.rotate(90)], duration=50)
    elif path.stem == 'huge':
        path.write_bytes(png_bomb(30000, 30000))
    elif path.stem == 'one':
        image.crop((0, 0, 1, 1)).save(path)
    else:
        path.write_bytes({'empty': b'', 'text': b'I am a text.', 'cut': b'\x89PNG\r\n\x1a\n\0\0'}[path.stem])
    return path


@pytest.mark.parametrize('name', ['cmyk.jpg', 'rgba.png', 'la.png', 'p.png', 'i16.png', 'animated.png'])
def test_pictures_of_all_kinds_are_read(tmp_path, name):
    image = web_demo.read_upload(write_upload(tmp_path / name))
    assert image.shape == (40, 60, 3) and image.dtype == np.uint8


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('text.jpg', 'text.jpg: not an image'),
        ('empty.jpg', 'empty.jpg: not an image'),
        ('cut.png', 'cut.png: not an image'),
        ('one.png', 'one.png: 1 x 1 pixels; an image needs at least 4'),
        ('huge.png', 'huge.png: 30000 x 30000 is 900 megapixels, and this page takes 40: make it smaller'),
    ],
)
def test_a_bad_upload_is_one_sentence_with_advice_for_this_page(tmp_path, name, message):
    with pytest.raises(InputError) as caught:
        web_demo.read_upload(write_upload(tmp_path / name))
    text = str(caught.value)
    assert text.startswith(message) and str(tmp_path) not in text and '--' not in text


def test_an_upload_that_is_gone_is_asked_for_again(tmp_path):
    with pytest.raises(InputError, match=r'^gone.png: uploads are kept for 30 minutes; drop it again'):
        web_demo.read_upload(tmp_path / 'gone.png')


def test_what_gradio_leaves_behind_is_removed(tmp_path):
    ages = {'result-old': 90, 'result-new': 10, 'empty-old': 9999, 'empty-new': 90, 'used-old': 9999}
    for name, age in ages.items():
        (tmp_path / name).mkdir()
        if not name.startswith('empty'):
            (tmp_path / name / 'a.json').touch()
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    web_demo.remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {'result-new', 'empty-new', 'used-old'}
