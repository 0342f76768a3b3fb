"""The built wheel without the checkout, in another project and with mmdet's own script; and the model index."""

import os
import subprocess
import sys
from pathlib import Path

import mmdet
import pytest
import yaml
from conftest import PIP, ROOT, write_coco
from mmdet.registry import MODELS
from mmengine.config import Config
from test_config import SMALL
from tool_runs import metric, run_python, scalars

import yolov7_simple
from yolov7_simple import config_path
from yolov7_simple.ops import mmcv_ext

MMDET_TOOLS = Path(mmdet.__file__).parent / '.mim' / 'tools'
# A config in four lines: where it starts from, classes, data.
CONFIG = """
_base_ = __import__('yolov7_simple').config_path('yolov7_tiny_1xb8-40e_bccd.py')
model = dict(bbox_head=dict(num_classes=2))
data = dict(data_root={data!r}, metainfo=dict(classes=('box', 'disc')), ann_file='annotations/all.json')
train_dataloader, val_dataloader = dict(dataset=dict(dataset=data)), dict(dataset=data)
test_dataloader, val_evaluator = val_dataloader, dict(ann_file={data!r} + 'annotations/all.json')
test_evaluator = val_evaluator
"""


@pytest.fixture(scope='module')
def site(wheel, tmp_path_factory):
    """The wheel, installed into an empty folder."""
    folder = tmp_path_factory.mktemp('site')
    subprocess.run([*PIP, 'install', '--no-deps', '--target', folder, wheel], check=True, capture_output=True)
    return folder


def python(site, cwd, *arguments):
    """Run Python with the installed wheel in front of the checkout; return what it printed."""
    return run_python(sys.executable, cwd, *arguments, environment={'PYTHONPATH': str(site), 'OMP_NUM_THREADS': '1'})


def test_config_path_in_the_checkout():
    path = ROOT / 'configs' / 'yolov7' / 'yolov7_x_8xb16-300e_coco.py'
    assert config_path(path.name) == str(path)
    with pytest.raises(FileNotFoundError, match=r"no config 'yolov7_s.py'; it has: .*yolov7_x_8xb16-300e_coco\.py"):
        config_path('yolov7_s.py')


def test_wheel_carries_configs_tools_and_model_index(site):
    mim = site / 'yolov7_simple' / '.mim'

    def files(folder, pattern):
        return {str(path.relative_to(folder)) for path in folder.rglob(pattern) if '__pycache__' not in path.parts}

    assert files(mim / 'configs', '*.*') == files(ROOT / 'configs', '*.*')
    of_the_checkout = {'demo.py', *(f'benchmarks/{name}' for name in files(ROOT / 'tools' / 'benchmarks', '*.*'))}
    assert files(mim / 'tools', '*.*') == files(ROOT / 'tools', '*.*') - of_the_checkout
    assert (mim / 'model-index.yml').read_bytes() == (ROOT / 'model-index.yml').read_bytes()
    assert os.access(mim / 'tools' / 'dist_train.sh', os.X_OK)
    assert not list(site.glob('configs')) and not list(site.glob('tools'))


def test_an_editable_install_has_them_too(source, tmp_path):
    # pip would otherwise uninstall the package that the tests run with.
    install = [*PIP, 'install', '--ignore-installed', '--no-deps', '--no-build-isolation', '--prefix', tmp_path]
    subprocess.run([*install, '-e', source], check=True, capture_output=True)
    name = 'yolov7_x_8xb16-300e_coco.py'
    found = python(source, tmp_path, '-c', f'import yolov7_simple; print(yolov7_simple.config_path({name!r}))')
    assert found.split()[-1] == str(source / 'configs/yolov7' / name)  # and not the link to it
    mim = source / 'yolov7_simple' / '.mim'
    assert (mim / 'configs/yolov7' / name).samefile(source / 'configs/yolov7' / name)
    assert (mim / 'tools/train.py').is_file() and (mim / 'model-index.yml').is_file()


def test_pip_replaces_nothing_of_mmdets(site):
    """pip does not know that forks of mmengine, mmcv and mmdet provide the same modules."""
    (metadata,) = site.glob('*.dist-info/METADATA')
    needs = [line for line in metadata.read_text().splitlines() if line.startswith('Requires-Dist')]
    assert needs and not any(name in line for line in needs for name in ('mmcv', 'mmdet', 'mmengine'))


def test_model_index_tells_what_the_configs_are():
    index = yaml.safe_load((ROOT / 'model-index.yml').read_text())
    assert index == {'Import': ['configs/yolov7/metafile.yml']}
    content = yaml.safe_load((ROOT / index['Import'][0]).read_text())
    models, collections = content['Models'], {one['Name'].lower(): one for one in content['Collections']}
    configs = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob('configs/yolov7/*_coco.py'))
    assert sorted(model['Config'] for model in models) == configs
    lines = [(ROOT / name).read_text().splitlines() for name in ('README.md', 'configs/yolov7/README.md')]
    for model in models:
        parameters = sum(p.numel() for p in MODELS.build(Config.fromfile(ROOT / model['Config']).model).parameters())
        assert model['Metadata']['Parameters'] == parameters
        # `mim search --model yolov7_tiny` compares names of collections, in small letters.
        assert Path(model['Config']).stem.startswith(f'{model["In Collection"].lower()}_')
        assert (ROOT / collections[model['In Collection'].lower()]['README']).is_file()
        metrics = model['Results'][0]['Metrics'] if 'Results' in model else {}
        for readme in lines:
            row = next(line for line in readme if line.startswith('|') and Path(model['Config']).name in line)
            figures = [cell.strip() for cell in row.split('|')[3:7]]
            assert figures[:2] == [f'{parameters:,}', f'{model["Metadata"]["FLOPs"] / 1e9:g}']
            assert figures[2:] == [str(metrics.get(key, 'never trained')) for key in ('box AP', 'box AP50')]


def test_the_wheel_has_python_style_configs(site, tmp_path):
    (tmp_path / 'mine.py').write_text(
        'from mmengine.config import read_base\n\nwith read_base():\n'
        '    from yolov7_simple.configs.yolov7_x_8xb16_300e_coco import *\n'
    )
    read = "from mmengine.config import Config; print(Config.fromfile('mine.py').model.backbone.type.__module__)"
    assert python(site, tmp_path, '-c', read).split()[-1] == 'yolov7_simple.models.backbone'


def test_a_foreign_project_with_the_wheel_alone(site, tmp_path):
    """Train with mmdet's own script and a config of four lines, resume, and evaluate with the dumped config."""
    write_coco(tmp_path / 'data')
    (tmp_path / 'mine.py').write_text(CONFIG.format(data=f'{tmp_path}/data/'))
    short = [
        'train_cfg.max_epochs=1', 'train_cfg.val_interval=1', 'train_cfg.dynamic_intervals=None',
        'train_dataloader.batch_size=4', 'val_dataloader.batch_size=1',
    ]  # fmt: skip
    train = MMDET_TOOLS / 'train.py'
    python(site, tmp_path, train, 'mine.py', *SMALL, *short)
    work = tmp_path / 'work_dirs' / 'mine'
    resumed = python(site, tmp_path, train, 'mine.py', '--resume', *SMALL, *short, 'train_cfg.max_epochs=2')
    assert 'resumed epoch: 1, iter: 2' in resumed
    assert len([record for record in scalars(work) if 'loss' in record]) == 2  # one an epoch
    test = site / 'yolov7_simple' / '.mim' / 'tools' / 'test.py'
    dumped = work / 'mine.py'
    assert '_base_' not in dumped.read_text()
    assert metric(python(site, tmp_path, test, dumped, work / 'epoch_2.pth')) == metric(resumed)
    # mmdet's own script imports its models before it reads the config: it needs the ops, or our import before that.
    mmdets = tmp_path / 'test.py'
    mmdets.write_text(('import yolov7_simple\n' if mmcv_ext.install() else '') + (MMDET_TOOLS / 'test.py').read_text())
    assert metric(python(site, tmp_path, mmdets, dumped, work / 'epoch_2.pth')) == metric(resumed)
    name = 'yolov7_l_8xb16-300e_coco.py'
    where = python(site, tmp_path, '-c', f'import yolov7_simple as y; print(y.__file__, y.config_path({name!r}))')
    package = site / 'yolov7_simple'
    assert where.splitlines()[-1].split() == [
        str(package / '__init__.py'), str(package / '.mim' / 'configs' / 'yolov7' / name)
    ]  # fmt: skip
    assert Path(yolov7_simple.__file__).is_relative_to(ROOT)
