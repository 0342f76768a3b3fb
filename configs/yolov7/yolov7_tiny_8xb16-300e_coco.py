_base_ = './yolov7_l_8xb16-300e_coco.py'

model = dict(
    # 0.5 to 1.5 times 640
    data_preprocessor=dict(batch_augments=[dict(type='BatchMultiScale', random_size_range=(320, 960))]),
    backbone=dict(arch='tiny'),
    # The published Tiny, 39.5 AP, started from ImageNet weights:
    # backbone=dict(arch='tiny', init_cfg=dict(type='Pretrained', checkpoint='rtodlab://elannet_tiny')),
    neck=dict(in_channels=[128, 256, 512], out_channels=128, num_stages=2),
    bbox_head=dict(in_channels=128),
)
