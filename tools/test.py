"""Judge a detector: mmdet's tools/test.py and its flags."""

from mmdet_tool import run

if __name__ == '__main__':
    run('test.py')
