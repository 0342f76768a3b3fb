"""Train a detector: mmdet's tools/train.py and its flags."""

from mmdet_tool import run

if __name__ == '__main__':
    run('train.py')
