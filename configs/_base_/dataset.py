# COCO detection. For other data set data_root, and metainfo=dict(classes=...) where the classes differ.
dataset_type = 'CheckedCocoDataset'
data_root = 'data/coco/'
backend_args = None
img_scale = (640, 640)  # width, height

train_pipeline = [
    dict(
        type='MosaicAffineMixUp',
        img_scale=img_scale,
        center_ratio_range=(0.5, 1.5),
        max_rotate_degree=10.0,
        max_shear_degree=2.0,
        max_translate_ratio=0.1,
        scaling_ratio_range=(0.1, 2.0),
        mixup_ratio_range=(0.5, 1.5),
        flip_prob=0.5,
        backend_args=backend_args,
    ),
    dict(type='RandomHSVGain', hue=0.015, saturation=0.7, value=0.4),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile', backend_args=backend_args),
    dict(type='CheckImageFile', backend_args=backend_args),
    # The longer side becomes 640, up or down; the data preprocessor pads to a multiple of 32.
    dict(type='Resize', scale=img_scale, keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]

train_dataloader = dict(
    batch_size=16,
    num_workers=8,
    persistent_workers=True,
    pin_memory=True,
    collate_fn=dict(type='packed_collate'),  # what the trainer receives in little time
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='SeededMixDataset',
        dataset=dict(
            type=dataset_type,
            data_root=data_root,
            ann_file='annotations/instances_train2017.json',
            data_prefix=dict(img='train2017/'),
            # Images without boxes teach what is background.
            filter_cfg=dict(filter_empty_gt=False, min_size=0),
            # Images are read where they are warped.
            pipeline=[dict(type='LoadAnnotations', with_bbox=True)],
            backend_args=backend_args,
        ),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    # One at a time, as the original: in a batch the smaller images would be padded further.
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file='annotations/instances_val2017.json',
        data_prefix=dict(img='val2017/'),
        test_mode=True,
        pipeline=test_pipeline,
        backend_args=backend_args,
    ),
)
test_dataloader = val_dataloader

val_evaluator = dict(
    type='CocoMetric',
    ann_file=data_root + 'annotations/instances_val2017.json',
    metric='bbox',
    format_only=False,
    backend_args=backend_args,
)
test_evaluator = val_evaluator
