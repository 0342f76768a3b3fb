# `make demo`: handwritten digits pasted on photographs, made by tools/demo.py, trained in minutes on two CPU cores.
_base_ = './yolov7_tiny_1xb8-40e_bccd.py'

data_root = 'work_dirs/demo/data/'
img_scale = (160, 160)
dataset = dict(data_root=data_root, metainfo=dict(classes=('0', '1', '2', '3', '4', '5', '6', '7', '8', '9')))

# Half the width of Tiny.
model = dict(
    data_preprocessor=dict(
        batch_augments=[dict(type='BatchMultiScale', random_size_range=img_scale, min_bbox_size=4.0)]
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
next(step for step in test_pipeline if step.type == 'Resize').scale = img_scale
tta_pipeline = _base_.tta_pipeline
next(
    choices
    for step in tta_pipeline
    if step.type == 'TestTimeAug'
    for choices in step.transforms
    if choices[0].type == 'Resize'
)[:] = [dict(type='Resize', scale=(side, side), keep_ratio=True) for side in (160, 128, 192)]

train_dataloader = dict(batch_size=16, dataset=dict(dataset=dataset, pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(dataset, pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(dataset, ann_file='annotations/val.json', pipeline=test_pipeline))
val_evaluator = dict(ann_file=data_root + 'annotations/val.json', classwise=False)
test_evaluator = dict(ann_file=data_root + 'annotations/val.json')

train_cfg = dict(max_epochs=15, val_interval=3, dynamic_intervals=None)
param_scheduler = _base_.param_scheduler
next(one for one in param_scheduler if one.type == 'LinearLR').end = 1
next(one for one in param_scheduler if one.type == 'CosineToEndLR').begin = 1
custom_hooks = _base_.custom_hooks
next(hook for hook in custom_hooks if hook.type == 'LastStageHook').num_last_epochs = 5
optim_wrapper = dict(optimizer=dict(lr=0.002))
default_hooks = dict(logger=dict(interval=25), visualization=dict(score_thr=0.5))
