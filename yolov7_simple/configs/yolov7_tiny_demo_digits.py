"""``configs/yolov7/yolov7_tiny_demo_digits.py`` in Python style: what it has, with classes as types."""

from importlib import import_module

globals().update(import_module('yolov7_simple.apis.config_options').python_style(__file__))
