"""``configs/semi/mean-teacher_yolov7_tiny_8xb16-180k_semi10-coco.py``, in Python style."""

import yolov7_simple  # noqa: F401  mmengine takes a file that imports a package for a Python-style config

globals().update(__import__('yolov7_simple.apis.config_options', fromlist=['']).python_style(__file__))
