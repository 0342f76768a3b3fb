"""Packaging: the plugin itself, pure Python. Nothing of mmcv or mmdet is a dependency that pip would replace."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent

setup(
    name='yolov7-simple',
    version=re.search(r"__version__ = '(.+)'", (ROOT / 'yolov7_simple' / '__init__.py').read_text()).group(1),
    description='YOLOv7 without tricks, as a plugin of MMDetection',
    long_description=(ROOT / 'README.md').read_text() if (ROOT / 'README.md').exists() else '',
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    packages=find_packages(include=['yolov7_simple', 'yolov7_simple.*']),
    python_requires='>=3.10,<3.13',
    # mmcv and mmdet are left to the user: which build of mmcv fits depends on the machine, and pip would change it.
    install_requires=['torch>=2.0', 'numpy', 'mmengine>=0.10', 'pycocotools'],
)
