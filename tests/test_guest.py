"""Each of our parts alone in a detector of mmdet's; mmdet's and a foreign dataset class in our pipeline."""

import pytest
import torch
from mmdet.datasets.base_det_dataset import BaseDetDataset
from mmdet.registry import DATASETS, MODELS, TASK_UTILS
from mmengine.config import Config, ConfigDict
from mmengine.dataset import pseudo_collate
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from test_config import BOXES, write_image, write_voc

from yolov7_simple import config_path

PREPROCESSOR = {'type': 'DetDataPreprocessor', 'pad_size_divisor': 32}
BACKBONE = {'type': 'ELANNet', 'arch': 'tiny', 'widen_factor': 0.125}
NECK = {'type': 'ELANPAFPN', 'in_channels': [16, 32, 64], 'out_channels': 16, 'num_stages': 2}
NMS = {'score_thr': 0.01, 'nms': {'type': 'nms', 'iou_threshold': 0.65}, 'nms_pre': 100, 'max_per_img': 20}
YOLOX = {
    'bbox_head': {'type': 'YOLOXHead', 'num_classes': 2, 'in_channels': 16, 'feat_channels': 16, 'stacked_convs': 1},
    'train_cfg': {'assigner': {'type': 'SimOTAAssigner'}},
    'test_cfg': NMS,
}
DETECTORS = {
    'our backbone under RetinaNet': {
        'type': 'RetinaNet',
        'data_preprocessor': PREPROCESSOR,
        'backbone': BACKBONE,
        'neck': {'type': 'FPN', 'in_channels': [16, 32, 64], 'out_channels': 16, 'num_outs': 5},
        'bbox_head': {
            'type': 'RetinaHead',
            'num_classes': 2,
            'in_channels': 16,
            'feat_channels': 16,
            'stacked_convs': 1,
            'anchor_generator': {
                'type': 'AnchorGenerator',
                'octave_base_scale': 4,
                'scales_per_octave': 3,
                'ratios': [0.5, 1.0, 2.0],
                'strides': [8, 16, 32, 64, 128],
            },
        },
        'train_cfg': {
            'assigner': {'type': 'MaxIoUAssigner', 'pos_iou_thr': 0.5, 'neg_iou_thr': 0.4, 'min_pos_iou': 0},
            'sampler': {'type': 'PseudoSampler'},
            'allowed_border': -1,
            'pos_weight': -1,
        },
        'test_cfg': {**NMS, 'min_bbox_size': 0},
    },
    'our neck under YOLOXHead': {
        'type': 'YOLOX',
        'data_preprocessor': PREPROCESSOR,
        'backbone': {'type': 'CSPDarknet', 'deepen_factor': 0.33, 'widen_factor': 0.125},
        'neck': {**NECK, 'in_channels': [32, 64, 128]},
        **YOLOX,
    },
    'our head on CSPDarknet and YOLOXPAFPN': {
        'type': 'SingleStageDetector',
        'data_preprocessor': PREPROCESSOR,
        'backbone': {'type': 'CSPDarknet', 'deepen_factor': 0.33, 'widen_factor': 0.125},
        'neck': {'type': 'YOLOXPAFPN', 'in_channels': [32, 64, 128], 'out_channels': 16, 'num_csp_blocks': 1},
        'bbox_head': {'type': 'YOLOv7SimpleHead', 'num_classes': 2, 'in_channels': 16},
        'test_cfg': NMS,
    },
    'our assigner in YOLOXHead': {
        'type': 'YOLOX',
        'data_preprocessor': PREPROCESSOR,
        'backbone': {'type': 'CSPDarknet', 'deepen_factor': 0.33, 'widen_factor': 0.125},
        'neck': {'type': 'YOLOXPAFPN', 'in_channels': [32, 64, 128], 'out_channels': 16, 'num_csp_blocks': 1},
        **YOLOX,
        'train_cfg': {'assigner': {'type': 'BatchSimOTAAssigner'}},
    },
}


@DATASETS.register_module()
class ListDataset(BaseDetDataset):
    """A dataset class from elsewhere, whose annotation file has a line of text for each image."""

    METAINFO = {'classes': tuple(BOXES)}

    def load_data_list(self):
        return [
            {
                'img_id': i,
                'img_path': f'{self.data_prefix["img"]}{i}.jpg',
                'height': 64,
                'width': 96,
                'instances': [
                    {'bbox': list(box), 'bbox_label': label, 'ignore_flag': 0}
                    for label, box in enumerate(BOXES.values())
                ],
            }
            for i in range(4)
        ]


def dataset_cfg(kind, folder):
    """The training set of our config with another class of dataset in it."""
    if kind == 'VOCDataset':
        write_voc(folder)
        source = {
            'ann_file': 'ImageSets/Main/train.txt',
            'data_prefix': {'sub_data_root': ''},
            'metainfo': {'classes': tuple(BOXES)},
        }
        source['data_root'] = str(folder)
    elif kind == 'ListDataset':
        for i in range(4):
            write_image(folder / f'{i}.jpg')
        source = {'data_prefix': {'img': f'{folder}/'}}
    cfg = Config.fromfile(config_path('yolov7_tiny_1xb8-40e_bccd.py')).train_dataloader.dataset
    cfg.dataset = {'type': kind, 'pipeline': cfg.dataset.pipeline, **source}
    cfg.pipeline[0].img_scale = (64, 64)
    return cfg


@pytest.mark.parametrize('name', DETECTORS)
def test_a_part_alone_learns_and_finds(name, tmp_path):
    """Losses of a batch of our samples fall in a few steps; predictions are in order."""
    dataset = DATASETS.build(dataset_cfg('ListDataset', tmp_path))
    batch = pseudo_collate([dataset[0], dataset[1]])
    for sample in batch['data_samples']:
        sample.set_metainfo({'ori_shape': (64, 64), 'scale_factor': (1.0, 1.0)})
    model = MODELS.build(ConfigDict(DETECTORS[name]))
    model.init_weights()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    totals = []
    for _ in range(10):
        losses = model(**model.data_preprocessor(batch, True), mode='loss')
        total, _ = model.parse_losses(losses)
        optimizer.zero_grad()
        total.backward()
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
        optimizer.step()
        totals.append(total.item())
    assert totals[-1] < 0.9 * totals[0], totals
    with torch.no_grad():
        found = model.eval()(**model.data_preprocessor(batch, False), mode='predict')
    for sample in found:
        instances = sample.pred_instances
        assert instances.bboxes.shape == (len(instances), 4) and set(instances.labels.tolist()) <= {0, 1}


def test_our_assigner_gives_what_mmdets_gives():
    priors = torch.cat(
        [torch.cartesian_prod(torch.arange(4, 128, 8), torch.arange(4, 128, 8)), torch.full((256, 2), 8)], 1
    )
    centers = priors[:, :2] + torch.randn(256, 2) * 4
    sizes = torch.rand(256, 2) * 40 + 4
    predicted = InstanceData(
        bboxes=torch.cat([centers - sizes / 2, centers + sizes / 2], 1),
        priors=priors.float(),
        scores=torch.rand(256, 5).clamp(0.01, 0.99),
    )
    corners = torch.rand(6, 2) * 80
    truth = InstanceData(
        bboxes=torch.cat([corners, corners + 10 + torch.rand(6, 2) * 35], 1), labels=torch.randint(0, 5, (6,))
    )
    wanted = TASK_UTILS.build({'type': 'SimOTAAssigner'}).assign(predicted, truth)
    given = TASK_UTILS.build({'type': 'BatchSimOTAAssigner'}).assign(predicted, truth)
    assert (wanted.gt_inds > 0).sum() > 6
    torch.testing.assert_close(given.gt_inds, wanted.gt_inds)
    torch.testing.assert_close(given.labels, wanted.labels)
    matched = wanted.gt_inds > 0
    torch.testing.assert_close(given.max_overlaps[matched], wanted.max_overlaps[matched])


@pytest.mark.parametrize('kind', ['VOCDataset', 'ListDataset'])
def test_another_dataset_trains_under_our_config(kind, tmp_path):
    """Through mmengine's runner, with our pipeline and hooks."""
    dataset = dataset_cfg(kind, tmp_path)
    cfg = Config.fromfile(config_path('yolov7_tiny_1xb8-40e_bccd.py'))
    cfg.model.update(backbone=BACKBONE, neck=NECK)
    cfg.model.bbox_head.update(in_channels=16, num_classes=2)
    cfg.train_cfg = {'type': 'EpochBasedTrainLoop', 'max_epochs': 2}
    for hook in cfg.custom_hooks:
        if hook.type == 'LastStageHook':
            hook.num_last_epochs = 1
    for stage in ('val', 'test'):
        for part in ('dataloader', 'evaluator', 'cfg'):
            cfg[f'{stage}_{part}'] = None
    cfg.train_dataloader.dataset = dataset
    cfg.train_dataloader.update(batch_size=2, num_workers=0, persistent_workers=False)
    cfg.param_scheduler = None
    cfg.default_hooks.checkpoint = None
    cfg.work_dir = str(tmp_path / 'work')
    cfg.experiment_name = f'guest_{kind}'
    runner = Runner.from_cfg(cfg)
    runner.train()
    # mmdet's VOC counts pixels from 1.
    expected = [[v - 1 if kind == 'VOCDataset' else v for v in box] for box in BOXES.values()]
    sample = runner.train_dataloader.dataset.dataset[0]
    assert [[round(v) for v in box] for box in sample['gt_bboxes'].tensor.tolist()] == expected
    assert runner.epoch == 2 and runner.model.bbox_head.use_l1
