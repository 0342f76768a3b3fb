"""Each tool imports this first, to end with one line where yolov7_simple is not installed."""

import sys
from importlib.util import find_spec

if find_spec('yolov7_simple') is None:
    sys.exit('error: yolov7_simple is not installed in this Python: pip install -e . in the checkout')
