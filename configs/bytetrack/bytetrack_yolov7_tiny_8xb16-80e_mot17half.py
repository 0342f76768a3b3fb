# ByteTrack over YOLOv7-Tiny: trained on the first halves of MOT17's videos, tested on the second ones. It needs the
# lap package. docs/tracking.md has the commands, also that which makes the annotations.
_base_ = '../yolov7/yolov7_tiny_8xb16-300e_coco.py'

data_root = 'data/MOT17/'
metainfo = dict(classes=('pedestrian',))

# The detector as it is; its preprocessor goes to the tracker.
detector = _base_.model
data_preprocessor = detector.pop('data_preprocessor')
detector.bbox_head.num_classes = 1
model = dict(
    _delete_=True,
    type='ByteTrack',
    # In training it takes batches of images, in testing videos.
    data_preprocessor=dict(data_preprocessor, type='TrackDataPreprocessor', use_det_processor=True),
    detector=detector,
    tracker=dict(
        type='ByteTracker',
        motion=dict(type='KalmanFilter'),
        obj_score_thrs=dict(high=0.6, low=0.1),
        init_track_thr=0.7,
        weight_iou_with_det_scores=True,
        match_iou_thrs=dict(high=0.1, low=0.5, tentative=0.3),
        num_frames_retain=30,
    ),
)

train_dataloader = dict(
    dataset=dict(
        dataset=dict(
            data_root=data_root,
            ann_file='annotations/half-train_cocoformat.json',
            data_prefix=dict(img='train/'),
            metainfo=metainfo,
        )
    )
)
test_pipeline = [
    dict(
        type='TransformBroadcaster',
        transforms=[
            dict(type='LoadImageFromFile', backend_args=_base_.backend_args),
            dict(type='CheckImageFile', backend_args=_base_.backend_args),
            dict(type='Resize', scale=_base_.img_scale, keep_ratio=True),
            dict(type='LoadTrackAnnotations'),
        ],
    ),
    dict(type='PackTrackInputs'),
]
val_dataloader = dict(
    _delete_=True,
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    drop_last=False,
    # One frame at a time; a process has whole videos.
    sampler=dict(type='TrackImgSampler'),
    dataset=dict(
        type='MOTChallengeDataset',
        data_root=data_root,
        ann_file='annotations/half-val_cocoformat.json',
        data_prefix=dict(img_path='train/'),
        metainfo=metainfo,
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
# While training, the detections: mAP.
val_evaluator = dict(type='CocoVideoMetric', ann_file=data_root + 'annotations/half-val_cocoformat.json')
# In the end the tracks, for which mmdet needs the trackeval package.
test_evaluator = dict(_delete_=True, type='MOTChallengeMetric', metric=['HOTA', 'CLEAR', 'Identity'])

train_cfg = dict(max_epochs=80)
default_hooks = dict(visualization=dict(_delete_=True, type='TrackVisualizationHook', draw=False))
visualizer = dict(type='TrackLocalVisualizer')

# Test-time augmentation is for images.
del _base_.tta_model
del _base_.tta_scales
del _base_.tta_pipeline

del detector, data_preprocessor
