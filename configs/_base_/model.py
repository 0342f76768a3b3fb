# YOLOv7. The other sizes differ by a few lines, in configs/yolov7/.
model = dict(
    type='SingleStageDetector',
    data_preprocessor=dict(
        type='BatchDetDataPreprocessor',
        mean=[0.0, 0.0, 0.0],
        std=[255.0, 255.0, 255.0],
        bgr_to_rgb=False,
        pad_size_divisor=32,
        non_blocking=True,  # of pinned memory, so that the CPU need not wait for the copies
        # Images of a batch are padded after the division by 255.
        pad_value=114 / 255,
        # Every step another size: 0.5 to 1.25 times 640.
        batch_augments=[dict(type='BatchMultiScale', random_size_range=(320, 800))],
    ),
    backbone=dict(type='ELANNet', arch='large'),
    neck=dict(type='ELANPAFPN', in_channels=[512, 1024, 1024], out_channels=256, num_stages=4, depth=1),
    bbox_head=dict(type='YOLOv7SimpleHead', num_classes=80, in_channels=256, strides=(8, 16, 32)),
    train_cfg=dict(assigner=dict(type='BatchSimOTAAssigner', center_radius=2.5, candidate_topk=10)),
    # Every detection above the threshold is kept: COCO's metric takes the best 100 of each class.
    test_cfg=dict(nms_pre=1000, score_thr=0.001, nms=dict(type='nms', iou_threshold=0.7)),
)
