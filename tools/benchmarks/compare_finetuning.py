"""Train on few photographs from random weights and from trained ones, by several recipes, and compare the mAP.

    python tools/benchmarks/compare_finetuning.py DATA [--names random plain ...] [--seeds 0 1 2]

DATA holds `bccd` and `coco_mini`, both as COCO files. Half of BCCD's training photographs and all of coco_mini's make
the trained weights, for all their classes; then 30 photographs of the other half, others for each seed, are trained on.
Tiny at half the width, 224 pixels. The last epoch is evaluated on BCCD's validation and test split. What --work-dir has
already is not repeated, and a training that was stopped in the middle goes on.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any, NamedTuple

from yolov7_simple import config_path  # before mmdet: it stands in for missing mmcv ops

# isort: split

import numpy as np
from mmengine.config import Config
from mmengine.runner import Runner

from yolov7_simple.apis.inference import load_config
from yolov7_simple.own_data.config import set_schedule
from yolov7_simple.own_data.finetune import EPOCHS_SHARE, LEARNING_RATE_SHARE, use_pretrained
from yolov7_simple.runtime.files import make_folder, write_json

SIZE = (224, 224)
NUM_PHOTOGRAPHS = 30


class Recipe(NamedTuple):
    """A share of the epochs; `start` is random, load_from or pretrained; what differs from the config's recipe."""

    share: float
    start: str
    changes: dict[str, Any] = {}


RECIPES = {
    'random': Recipe(1, 'random'),
    'random_third': Recipe(EPOCHS_SHARE, 'random'),
    'load_from': Recipe(1, 'load_from'),
    'load_from_third': Recipe(EPOCHS_SHARE, 'load_from'),
    # Every start from here on keeps the class rows.
    'rows': Recipe(EPOCHS_SHARE, 'pretrained'),
    'pretrained': Recipe(EPOCHS_SHARE, 'pretrained', {'lr': LEARNING_RATE_SHARE}),
    'pretrained_warmup_1': Recipe(EPOCHS_SHARE, 'pretrained', {'lr': LEARNING_RATE_SHARE, 'warmup': 1}),
    'lr_2': Recipe(EPOCHS_SHARE, 'pretrained', {'lr': 2.0}),
    'lr_0.25': Recipe(EPOCHS_SHARE, 'pretrained', {'lr': 0.25}),
    'warmup_1': Recipe(EPOCHS_SHARE, 'pretrained', {'warmup': 1}),
    'ema_gamma_12': Recipe(EPOCHS_SHARE, 'pretrained', {'ema_gamma': 12}),
    'last_stage_0.6': Recipe(EPOCHS_SHARE, 'pretrained', {'last_stage': 0.6}),
    'frozen_stages_1': Recipe(EPOCHS_SHARE, 'pretrained', {'frozen_stages': 1}),
    'backbone_lr_0.1': Recipe(EPOCHS_SHARE, 'pretrained', {'backbone_lr': 0.1}),
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('data', type=Path)
    parser.add_argument('--names', nargs='+', choices=RECIPES, default=list(RECIPES), help='recipes, default: all')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--pretrain-epochs', type=int, default=60)
    parser.add_argument('--epochs', type=int, default=90, help='full length of a fine-tuning')
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/compare_finetuning'))
    return parser.parse_args()


def read(path: Path, folder: str) -> dict:
    """Read a COCO file, with the folder in front of the names of its images."""
    content = json.loads(path.read_text())
    for image in content['images']:
        image['file_name'] = f'{folder}/{image["file_name"]}'
    return content


def keep(content: dict, indices: list[int]) -> dict:
    """Keep some of the images of a COCO file."""
    images = [content['images'][i] for i in indices]
    ids = {image['id'] for image in images}
    annotations = [one for one in content['annotations'] if one['image_id'] in ids]
    return {**content, 'images': images, 'annotations': annotations}


def join(contents: list[dict]) -> dict:
    """Join COCO files; categories of the same name are one."""
    names = list(dict.fromkeys(one['name'] for content in contents for one in content['categories']))
    joined = {'images': [], 'annotations': [], 'categories': [{'id': i, 'name': name} for i, name in enumerate(names)]}
    for content in contents:
        first_image = len(joined['images'])
        image_ids = {one['id']: first_image + i for i, one in enumerate(content['images'])}
        category_ids = {one['id']: names.index(one['name']) for one in content['categories']}
        joined['images'] += [{**one, 'id': image_ids[one['id']]} for one in content['images']]
        for one in content['annotations']:
            ids = {'image_id': image_ids[one['image_id']], 'category_id': category_ids[one['category_id']]}
            joined['annotations'].append({**one, **ids, 'id': len(joined['annotations']) + 1})
    return joined


def class_names(content: dict) -> tuple[str, ...]:
    return tuple(one['name'] for one in content['categories'])


def make_config(args: argparse.Namespace, ann_file: Path, classes: tuple[str, ...], epochs: int, seed: int) -> Config:
    """Make the config of a training with the recipe of BCCD; it is evaluated on BCCD."""
    cfg = load_config(config_path('yolov7_tiny_1xb8-40e_bccd.py'))
    cfg.model.backbone.widen_factor = 0.5
    cfg.model.neck.update(in_channels=[64, 128, 256], out_channels=64)
    # Towers as wide as COCO's and BCCD's classes are many, so that they are of the same width for any.
    cfg.model.bbox_head.update(in_channels=64, feat_channels=88, num_classes=len(classes))
    cfg.model.data_preprocessor.batch_augments[0].random_size_range = SIZE
    cfg.train_dataloader.dataset.pipeline[0].img_scale = SIZE
    cfg.train_dataloader.dataset.dataset.update(
        data_root=f'{args.data}/', ann_file=str(ann_file), data_prefix=dict(img=''), metainfo=dict(classes=classes)
    )
    cfg.train_dataloader.update(num_workers=0, persistent_workers=False)
    cfg.optim_wrapper.optimizer.lr = 0.001  # which the recipes here are relative to
    for split in ('val', 'test'):
        loader = cfg[f'{split}_dataloader']
        loader.update(num_workers=0, persistent_workers=False)
        ann = str((args.data / 'bccd/annotations' / f'{split}.json').resolve())
        loader.dataset.update(data_root=f'{args.data}/bccd/', ann_file=ann)
        loader.dataset.pipeline[2].scale = SIZE
        cfg[f'{split}_evaluator'].ann_file = ann
    set_schedule(cfg, len(json.loads(ann_file.read_text())['images']), epochs)
    cfg.train_cfg.update(val_interval=epochs + 1, dynamic_intervals=None)
    cfg.default_hooks.checkpoint.update(interval=epochs, save_best=None)
    cfg.update(randomness=dict(seed=seed), log_level='WARNING')
    return cfg


def change_recipe(cfg: Config, changes: dict[str, Any]) -> None:
    """Change one thing or another of the recipe."""
    warmup, cosine = cfg.param_scheduler
    ema, last_stage = cfg.custom_hooks
    epochs = cfg.train_cfg.max_epochs
    cfg.optim_wrapper.optimizer.lr *= changes.get('lr', 1)
    ema.gamma = changes.get('ema_gamma', ema.gamma)
    cfg.model.backbone.frozen_stages = changes.get('frozen_stages', -1)
    if 'warmup' in changes:
        warmup.end = changes['warmup']
        cosine.update(begin=warmup.end, T_max=epochs - warmup.end)
    if 'last_stage' in changes:
        last_stage.num_last_epochs = round(changes['last_stage'] * epochs)
    if 'backbone_lr' in changes:
        cfg.optim_wrapper.paramwise_cfg.custom_keys = {'backbone': dict(lr_mult=changes['backbone_lr'])}


def halves(content: dict) -> tuple[list[int], list[int]]:
    """Split the images of a COCO file at random."""
    order = np.random.default_rng(0).permutation(len(content['images'])).tolist()
    middle = len(order) // 2
    return order[:middle], order[middle:]


def pretrain(args: argparse.Namespace) -> Path:
    """Train on coco_mini and one half of BCCD, unless that was done already."""
    folder = args.work_dir / 'pretrained'
    checkpoint = folder / f'epoch_{args.pretrain_epochs}.pth'
    if not checkpoint.exists():
        make_folder(folder)
        bccd = read(args.data / 'bccd/annotations/train.json', 'bccd/images')
        half = keep(bccd, halves(bccd)[0])
        coco = [
            read(args.data / f'coco_mini/annotations/instances_{split}2017.json', f'coco_mini/{split}2017')
            for split in ('train', 'val')
        ]
        joined = join([half, *coco])
        write_json(folder / 'train.json', joined)
        cfg = make_config(args, (folder / 'train.json').resolve(), class_names(joined), args.pretrain_epochs, seed=0)
        # The validation split has other classes.
        cfg.update(val_dataloader=None, val_evaluator=None, val_cfg=None)
        cfg.default_hooks.checkpoint.interval = 5
        cfg.update(work_dir=str(folder), resume=True, log_level='INFO')
        Runner.from_cfg(cfg).train()
    return checkpoint


def run(args: argparse.Namespace, name: str, seed: int) -> dict[str, float]:
    """Train and evaluate once, unless that was done already.

    Returns:
        mAP on the validation and on the test split.
    """
    folder = args.work_dir / f'{name}_seed{seed}'
    result = folder / 'result.json'
    if result.exists():
        return json.loads(result.read_text())
    recipe = RECIPES[name]
    make_folder(folder)
    bccd = read(args.data / 'bccd/annotations/train.json', 'bccd/images')
    other_half = np.random.default_rng(seed).permutation(halves(bccd)[1])[:NUM_PHOTOGRAPHS]
    photographs = keep(bccd, other_half.tolist())
    write_json(folder / 'train.json', photographs)
    classes = class_names(photographs)
    cfg = make_config(args, (folder / 'train.json').resolve(), classes, round(recipe.share * args.epochs), seed)
    if recipe.start == 'load_from':
        cfg.load_from = str(pretrain(args))
    elif recipe.start == 'pretrained':
        learning_rate = cfg.optim_wrapper.optimizer.lr
        use_pretrained(cfg, str(pretrain(args)), classes, folder / 'fitted.pth')
        cfg.optim_wrapper.optimizer.lr = learning_rate  # the recipe's own is one of those compared
    change_recipe(cfg, recipe.changes)
    cfg.work_dir = str(folder)
    runner = Runner.from_cfg(cfg)
    runner.train()
    # The average of the weights, as the hook saves it.
    runner.load_checkpoint(str(folder / f'epoch_{runner.max_epochs}.pth'))
    loops = {'val': runner.val_loop, 'test': runner.test_loop}
    scores = {split: float(loop.run()['coco/bbox_mAP']) for split, loop in loops.items()}
    for checkpoint in folder.glob('*.pth'):
        checkpoint.unlink()
    write_json(result, scores)
    return scores


def main() -> None:
    args = parse_args()
    args.data = args.data.resolve()
    pretrain(args)
    scores: dict[str, list[dict[str, float]]] = {name: [] for name in args.names}
    for seed in args.seeds:
        for name in args.names:
            scores[name].append(run(args, name, seed))
            print(f'{name}, seed {seed}: {scores[name][-1]}', flush=True)

    print('\n| recipe | epochs | val: ' + ' | '.join(f'seed {seed}' for seed in args.seeds), end='')
    print(' | mean ± deviation, val | test |\n| --- ' + '| ---: ' * (len(args.seeds) + 3) + '|')
    for name, of_seeds in scores.items():
        cells = [f'{one["val"]:.3f}' for one in of_seeds]
        for split in ('val', 'test'):
            values = [one[split] for one in of_seeds]
            cells.append(f'{statistics.mean(values):.3f} ± {statistics.stdev(values) if values[1:] else 0:.3f}')
        print(f'| {name} | {round(RECIPES[name].share * args.epochs)} | {" | ".join(cells)} |')


if __name__ == '__main__':
    main()
