"""Packaging: the plugin itself, pure Python. Nothing of mmcv or mmdet is a dependency that pip would replace."""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent


class BuildWithConfigs(build_py):
    """Puts configs, tools and model index under ``yolov7_simple/.mim``, where mim looks for them.

    Into the wheel as files, for an editable install as links to those of the checkout.
    """

    def run(self):
        """Build the package, then copy or link."""
        super().run()
        mim = (ROOT if self.editable_mode else Path(self.build_lib)) / 'yolov7_simple' / '.mim'
        shutil.rmtree(mim, ignore_errors=True)  # of an earlier build
        if self.editable_mode:
            mim.mkdir()
            try:
                for name in ('configs', 'tools', 'model-index.yml'):
                    (mim / name).symlink_to(Path('..', '..', name))
            except OSError:  # no links on this file system, or no permission; `config_path` finds the checkout's
                shutil.rmtree(mim)
            return
        for name in ('configs', 'tools'):
            # The demo and the benchmarks are for a checkout: the demo writes beside its own tree.
            unwanted = shutil.ignore_patterns('__pycache__', 'demo.py', 'benchmarks')
            shutil.copytree(ROOT / name, mim / name, ignore=unwanted)
        shutil.copy(ROOT / 'model-index.yml', mim)


setup(
    name='yolov7-simple',
    version=re.search(r"__version__ = '(.+)'", (ROOT / 'yolov7_simple' / '__init__.py').read_text()).group(1),
    description='YOLOv7 without tricks, as a plugin of MMDetection',
    long_description=(ROOT / 'README.md').read_text() if (ROOT / 'README.md').exists() else '',
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    packages=find_packages(include=['yolov7_simple', 'yolov7_simple.*']),
    cmdclass={'build_py': BuildWithConfigs},
    python_requires='>=3.10,<3.13',
    # mmengine, mmcv and mmdet are left to the user: which build fits depends on the machine, and pip would change it.
    # Of the maintained forks, which are imported by the same names, pip knows nothing and would install over them.
    # Before 2.6 torch's safe reading of checkpoints had a hole, CVE-2025-32434.
    install_requires=['torch>=2.6', 'numpy', 'pycocotools', 'msgspec', 'filelock'],
)
