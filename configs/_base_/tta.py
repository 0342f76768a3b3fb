# Test-time augmentation for tools/test.py --tta: three scales, each as it is and flipped.
tta_model = dict(
    type='DetTTAModel',
    # COCO's metric takes the best 100 of each class, so what is kept is far more.
    tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.7), max_per_img=1000),
)
tta_scales = [(640, 640), (512, 512), (768, 768)]
tta_pipeline = [
    dict(type='LoadImageFromFile', backend_args=None),
    dict(type='CheckImageFile', backend_args=None),
    dict(
        type='TestTimeAug',
        transforms=[
            [dict(type='Resize', scale=scale, keep_ratio=True) for scale in tta_scales],
            [dict(type='RandomFlip', prob=0.0), dict(type='RandomFlip', prob=1.0)],
            [dict(type='LoadAnnotations', with_bbox=True)],
            [
                dict(
                    type='PackDetInputs',
                    meta_keys=(
                        'img_id',
                        'img_path',
                        'ori_shape',
                        'img_shape',
                        'scale_factor',
                        'flip',
                        'flip_direction',
                    ),
                )
            ],
        ],
    ),
]
