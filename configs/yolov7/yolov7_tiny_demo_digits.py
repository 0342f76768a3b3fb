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
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='CheckImageFile'),
    dict(type='Resize', scale=img_scale, keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]

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
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-4, by_epoch=True, begin=0, end=warmup_epochs, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        eta_min_ratio=0.01,
        by_epoch=True,
        begin=warmup_epochs,
        end=max_epochs,
        T_max=max_epochs - warmup_epochs,
        convert_to_iter_based=True,
    ),
]
custom_hooks = [
    # A short run: the average must not reach back to the random start.
    dict(type='EMAHook', ema_type='ExpMomentumEMA', momentum=0.0002, gamma=2000, update_buffers=True, priority=49),
    dict(type='LastStageHook', num_last_epochs=num_last_epochs, priority=48),
    dict(type='CheckInvalidLossHook', interval=50),
]
default_hooks = dict(logger=dict(interval=25), visualization=dict(score_thr=0.5))
