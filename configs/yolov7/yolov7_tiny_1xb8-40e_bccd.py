# Blood cells: 205 images, 320 pixels, one CPU or GPU. A short recipe to start from for a small set of one's own.
_base_ = './yolov7_tiny_8xb16-300e_coco.py'

data_root = 'data/bccd/'
metainfo = dict(classes=('RBC', 'WBC', 'Platelets'))
img_scale = (320, 320)
max_epochs = 40
warmup_epochs = 2
num_last_epochs = 12

model = dict(
    # The images come at one size, so only the scale of the mosaic varies; smallest cells stay above 4 pixels.
    data_preprocessor=dict(
        batch_augments=[dict(type='BatchMultiScale', random_size_range=(320, 320), min_bbox_size=4.0)]
    ),
    bbox_head=dict(num_classes=3),
)

train_pipeline = [
    # 40 epochs of 26 steps are too few for large scale jitter and mixup.
    dict(type='MosaicAffineMixUp', img_scale=img_scale, scaling_ratio_range=(0.5, 1.5), mixup_prob=0.0),
    dict(type='RandomHSVGain'),
    dict(type='PackDetInputs'),
]
# Lists replace the base's as a whole: take it, and change what differs.
test_pipeline = _base_.test_pipeline
test_pipeline[2].scale = img_scale
tta_pipeline = _base_.tta_pipeline
tta_pipeline[-1].transforms[0] = [dict(type='Resize', scale=(side, side), keep_ratio=True) for side in (320, 256, 384)]

train_dataloader = dict(
    batch_size=8,
    num_workers=2,
    dataset=dict(
        dataset=dict(
            data_root=data_root,
            metainfo=metainfo,
            ann_file='annotations/train.json',
            data_prefix=dict(img='images/'),
        ),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    num_workers=2,
    dataset=dict(
        data_root=data_root,
        metainfo=metainfo,
        ann_file='annotations/val.json',
        data_prefix=dict(img='images/'),
        pipeline=test_pipeline,
    ),
)
test_dataloader = dict(
    num_workers=2,
    dataset=dict(
        data_root=data_root,
        metainfo=metainfo,
        ann_file='annotations/test.json',
        data_prefix=dict(img='images/'),
        pipeline=test_pipeline,
    ),
)
val_evaluator = dict(ann_file=data_root + 'annotations/val.json', classwise=True)
test_evaluator = dict(ann_file=data_root + 'annotations/test.json', classwise=True)

train_cfg = dict(max_epochs=max_epochs, val_interval=5, dynamic_intervals=[(max_epochs - 5, 1)])
optim_wrapper = dict(optimizer=dict(lr=0.001))
param_scheduler = _base_.param_scheduler
param_scheduler[0].end = warmup_epochs
param_scheduler[1].update(begin=warmup_epochs, end=max_epochs, T_max=max_epochs - warmup_epochs)
auto_scale_lr = dict(base_batch_size=8)

custom_hooks = _base_.custom_hooks
custom_hooks[1].num_last_epochs = num_last_epochs
default_hooks = dict(logger=dict(interval=10))
