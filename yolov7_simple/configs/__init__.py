"""The configs in mmengine's Python style: ``with read_base(): from yolov7_simple.configs.NAME import *``."""
