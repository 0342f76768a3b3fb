"""Each tool imports this first, to end with one line where yolov7_simple is not installed."""

import sys
import time
from importlib.util import find_spec

BEGIN = time.monotonic()  # of the tool, before the imports that take seconds

if find_spec('yolov7_simple') is None:
    sys.exit('error: yolov7_simple is not installed in this Python: pip install -e . in the checkout')
