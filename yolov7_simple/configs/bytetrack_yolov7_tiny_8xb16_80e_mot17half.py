"""``configs/bytetrack/bytetrack_yolov7_tiny_8xb16-80e_mot17half.py``, in Python style."""

import yolov7_simple  # noqa: F401  mmengine takes a file that imports a package for a Python-style config

globals().update(__import__('yolov7_simple.apis.config_options', fromlist=['']).python_style(__file__))
