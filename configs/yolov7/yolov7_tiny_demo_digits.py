# `make demo`: handwritten digits pasted on photographs, made by tools/demo.py, trained in minutes on two CPU cores.
_base_ = './yolov7_tiny_1xb8-40e_bccd.py'

data_root = 'work_dirs/demo/data/'
metainfo = dict(classes=('0', '1', '2', '3', '4', '5', '6', '7', '8', '9'))
img_scale = (160, 160)
max_epochs = 15
warmup_epochs = 1
num_last_epochs = 5

# Half the width of Tiny.
model = dict(
    data_preprocessor=dict(
        batch_augments=[dict(type='BatchMultiScale', random_size_range=(160, 160), min_bbox_size=4.0)]
    ),
    backbone=dict(widen_factor=0.5),
    neck=dict(in_channels=[64, 128, 256], out_channels=64),
    bbox_head=dict(in_channels=64, num_classes=10),
)

train_pipeline = [
    # A flipped digit is another sign.
    dict(type='MosaicAffineMixUp', img_scale=img_scale, scaling_ratio_range=(0.7, 1.3), mixup_prob=0.0, flip_prob=0.0),
    dict(type='RandomHSVGain'),
    dict(type='PackDetInputs'),
]
test_pipeline = _base_.test_pipeline
test_pipeline[2].scale = img_scale
tta_pipeline = _base_.tta_pipeline
tta_pipeline[-1].transforms[0] = [dict(type='Resize', scale=(side, side), keep_ratio=True) for side in (160, 128, 192)]

train_dataloader = dict(
    batch_size=16,
    dataset=dict(dataset=dict(data_root=data_root, metainfo=metainfo), pipeline=train_pipeline),
)
val_dataloader = dict(dataset=dict(data_root=data_root, metainfo=metainfo, pipeline=test_pipeline))
test_dataloader = dict(
    dataset=dict(data_root=data_root, metainfo=metainfo, ann_file='annotations/val.json', pipeline=test_pipeline)
)
val_evaluator = dict(ann_file=data_root + 'annotations/val.json', classwise=False)
test_evaluator = dict(ann_file=data_root + 'annotations/val.json')

train_cfg = dict(max_epochs=max_epochs, val_interval=3, dynamic_intervals=None)
optim_wrapper = dict(optimizer=dict(lr=0.002))
param_scheduler = _base_.param_scheduler
param_scheduler[0].end = warmup_epochs
param_scheduler[1].update(begin=warmup_epochs, end=max_epochs, T_max=max_epochs - warmup_epochs)
custom_hooks = _base_.custom_hooks
custom_hooks[1].num_last_epochs = num_last_epochs
default_hooks = dict(logger=dict(interval=25), visualization=dict(score_thr=0.5))
