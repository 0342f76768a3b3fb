_base_ = './yolov7_l_8xb16-300e_coco.py'

model = dict(
    # 0.5 to 1.5 times 640
    data_preprocessor=dict(batch_augments=[dict(type='BatchMultiScale', random_size_range=(320, 960))]),
    backbone=dict(arch='huge'),
    neck=dict(in_channels=[640, 1280, 1280], out_channels=320, depth=2),
    bbox_head=dict(in_channels=320),
)
