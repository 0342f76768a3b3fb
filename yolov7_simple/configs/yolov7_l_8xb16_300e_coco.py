"""``configs/yolov7/yolov7_l_8xb16-300e_coco.py`` in Python style: what it has, with classes as types."""

from importlib import import_module

globals().update(import_module('yolov7_simple.apis.config_options').python_style(__file__))
