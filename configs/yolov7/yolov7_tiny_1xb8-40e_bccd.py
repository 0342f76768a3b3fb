# Blood cells: 205 images, 320 pixels, one CPU or GPU. A short recipe to start from for a small set of one's own.
_base_ = './yolov7_tiny_8xb16-300e_coco.py'

data_root = 'data/bccd/'
img_scale = (320, 320)
dataset = dict(data_root=data_root, metainfo=dict(classes=('RBC', 'WBC', 'Platelets')), data_prefix=dict(img='images/'))

model = dict(
    # The images come at one size, so only the scale of the mosaic varies; smallest cells stay above 4 pixels.
    data_preprocessor=dict(
        batch_augments=[dict(type='BatchMultiScale', random_size_range=img_scale, min_bbox_size=4.0)]
    ),
    bbox_head=dict(num_classes=3),
)

# A list replaces that of the base as a whole: write it anew, or take the base's and change an entry.
train_pipeline = [
    # 40 epochs of 26 steps are too few for large scale jitter and mixup.
    dict(type='MosaicAffineMixUp', img_scale=img_scale, scaling_ratio_range=(0.5, 1.5), mixup_prob=0.0),
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
)[:] = [dict(type='Resize', scale=(side, side), keep_ratio=True) for side in (320, 256, 384)]

train_dataloader = dict(
    batch_size=8,
    num_workers=2,
    dataset=dict(dataset=dict(dataset, ann_file='annotations/train.json'), pipeline=train_pipeline),
)
val_dataloader = dict(num_workers=2, dataset=dict(dataset, ann_file='annotations/val.json', pipeline=test_pipeline))
test_dataloader = dict(num_workers=2, dataset=dict(dataset, ann_file='annotations/test.json', pipeline=test_pipeline))
val_evaluator = dict(ann_file=data_root + 'annotations/val.json', classwise=True)
test_evaluator = dict(ann_file=data_root + 'annotations/test.json', classwise=True)

train_cfg = dict(max_epochs=40, val_interval=5, dynamic_intervals=[(-5, 1)])
param_scheduler = _base_.param_scheduler
next(one for one in param_scheduler if one.type == 'LinearLR').end = 2
next(one for one in param_scheduler if one.type == 'CosineToEndLR').begin = 2
custom_hooks = _base_.custom_hooks
next(hook for hook in custom_hooks if hook.type == 'LastStageHook').num_last_epochs = 12
optim_wrapper = dict(optimizer=dict(lr=0.003))
auto_scale_lr = dict(base_batch_size=8)
default_hooks = dict(logger=dict(interval=10))
