# A teacher and a student of YOLOv7-Tiny: a tenth of COCO has boxes, the student learns the rest from what the teacher
# finds, whose weights are the average of the student's. docs/tracking.md has the commands that split the set.
_base_ = '../yolov7/yolov7_tiny_8xb16-300e_coco.py'

backend_args = _base_.backend_args
batch_size = _base_.train_dataloader.batch_size

detector = _base_.model
data_preprocessor = detector.pop('data_preprocessor')
# The boxes of one branch are found again in the other by `homography_matrix`, so the pipelines alone may resize.
data_preprocessor.pop('batch_augments')
model = dict(
    _delete_=True,
    type='SemiBaseDetector',
    detector=detector,
    data_preprocessor=dict(type='MultiBranchDataPreprocessor', data_preprocessor=data_preprocessor),
    semi_train_cfg=dict(
        freeze_teacher=True,
        sup_weight=1.0,
        unsup_weight=1.0,
        # The lowest score of the teacher's boxes that the student learns.
        cls_pseudo_thr=0.6,
        min_pseudo_bbox_wh=(4, 4),
    ),
    semi_test_cfg=dict(predict_on='teacher'),
)

branches = ['sup', 'unsup_teacher', 'unsup_student']
sup_pipeline = [
    *_base_.train_pipeline[:-1],
    dict(type='MultiBranch', branch_field=branches, sup=_base_.train_pipeline[-1]),
]
scales = [(512, 512), (768, 768)]
pack = dict(
    type='PackDetInputs',
    meta_keys=(
        'img_id',
        'img_path',
        'ori_shape',
        'img_shape',
        'scale_factor',
        'flip',
        'flip_direction',
        'homography_matrix',
    ),
)
weak_pipeline = [
    dict(type='RandomResize', scale=scales, keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    pack,
]
strong_pipeline = [
    dict(type='RandomResize', scale=scales, keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='RandomHSVGain'),
    dict(type='RandomErasing', n_patches=(1, 5), ratio=(0, 0.2)),
    pack,
]
unsup_pipeline = [
    dict(type='LoadImageFromFile', backend_args=backend_args),
    dict(type='CheckImageFile', backend_args=backend_args),
    dict(type='LoadEmptyAnnotations'),
    dict(type='MultiBranch', branch_field=branches, unsup_teacher=weak_pipeline, unsup_student=strong_pipeline),
]

labeled_dataset = _base_.train_dataloader.dataset
labeled_dataset.dataset.ann_file = 'semi_anns/instances_train2017.1@10.json'
labeled_dataset.pipeline = sup_pipeline
unlabeled_dataset = dict(
    labeled_dataset,
    # mmdet's class, as CheckedCocoDataset refuses a set without boxes.
    dataset=dict(
        labeled_dataset.dataset, type='CocoDataset', ann_file='semi_anns/instances_train2017.1@10-unlabeled.json'
    ),
    pipeline=unsup_pipeline,
)
train_dataloader = dict(
    # Each batch has images of both sets, in these shares.
    sampler=dict(_delete_=True, type='MultiSourceSampler', batch_size=batch_size, source_ratio=[1, 1]),
    dataset=dict(_delete_=True, type='ConcatDataset', datasets=[labeled_dataset, unlabeled_dataset]),
)

# The sampler has no end, so the run is counted in steps.
train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=180000, val_interval=5000)
val_cfg = dict(type='TeacherStudentValLoop')
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-4, by_epoch=False, begin=0, end=1000),
    dict(type='CosineToEndLR', eta_min_ratio=0.01, by_epoch=False, begin=1000),
]
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=5000, save_best='teacher/coco/bbox_mAP'))
log_processor = dict(by_epoch=False)
custom_hooks = [
    # In place of the EMA. Without its BatchNorm statistics the teacher would find nothing.
    dict(type='MeanTeacherHook', momentum=0.001, skip_buffer=False),
]

del detector, data_preprocessor, batch_size, branches, scales, pack
