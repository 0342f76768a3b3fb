"""``configs/yolov7/yolov7_x_8xb16-300e_coco.py`` in Python style: what it has, with classes as types."""

import yolov7_simple  # noqa: F401  mmengine takes a file that imports a package for a Python-style config

globals().update(__import__('yolov7_simple.apis.config_options', fromlist=['']).python_style(__file__))
