_base_ = [
    '../_base_/model.py',
    '../_base_/dataset.py',
    '../_base_/schedule.py',
    '../_base_/tta.py',
    '../_base_/runtime.py',
]
