"""Run every tool that mmdet brings on one of our configs, and print a table of what works.

    PYTHONPATH=tests python tests/manual/mmdet_tools.py

Eight drawn images and a model of an eighth of Tiny's width: it is about the tools. The exit status is 1 if one that
should work does not, or one that should not does.
"""

import json
import re
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import torch
from conftest import write_coco
from tool_runs import free_port, tool, write_config

THREAD = 'https://github.com/open-mmlab/mmdetection/issues/'


@dataclass
class Row:
    """A tool, or a part of mmdet that a config names.

    Args:
        name: In the table.
        command: In tools/, with {places}; mmdet's own by tools/mmdet_tool.py. Empty: `why_not` says why it is not run.
        proof: What it must print (a pattern), or if there is a slash the files that it must leave.
        error: What it prints where it cannot work.
        needs: A package or program that is none of ours.
        why_not: What is in the way, where it is known, and what to do instead.
    """

    name: str
    command: str = ''
    proof: str = ''
    error: str = ''
    needs: str = ''
    why_not: str = ''


def host(name: str, arguments: str, proof: str, mode: str = '', **more) -> Row:
    return Row(f'`{name}`{mode}', f'mmdet_tool.py {name} {arguments}', proof, **more)


def option(name: str, options: str, proof: str, **more) -> Row:
    """A hook or visualiser: a run of its own with these options."""
    return Row(name, f'train.py {{config}} --work-dir {{work}}/{name} --cfg-options {options}', proof, **more)


CUDA = 'needs a GPU: `mmdet/utils/benchmark.py` calls `model.cuda()`; [mmdet#11427]. Instead: `benchmark_inference.py`'
ROWS = [
    Row('`train.py`', 'train.py {config} --work-dir {work}', '{work}/epoch_2.pth'),
    Row('`train.py --amp --auto-scale-lr`', 'train.py {config} --work-dir {work}/amp --amp --auto-scale-lr',
        '{work}/amp/epoch_2.pth'),
    Row('`train.py --resume`', 'train.py {config} --work-dir {work} --resume --cfg-options train_cfg.max_epochs=3',
        'goes on after epoch 2, step 8'),
    Row('`test.py --out`', 'test.py {config} {checkpoint} --work-dir {work}/test --out {work}/results.pkl '
        '--cfg-options test_evaluator.outfile_prefix={work}/results', '{work}/results.bbox.json'),
    Row('`test.py --tta`', 'test.py {config} {checkpoint} --work-dir {work}/tta --tta', r'coco/bbox_mAP: \d'),
    Row('`dist_train.sh`', 'dist_train.sh {config} 2 --work-dir {work}/dist', '{work}/dist/epoch_2.pth',
        why_not="ours: mmdet's needs a GPU"),
    Row('`dist_test.sh`', 'dist_test.sh {config} {checkpoint} 2 --work-dir {work}/dist_test', r'coco/bbox_mAP: \d',
        why_not="ours: mmdet's needs a GPU"),
    Row('`slurm_train.sh`', 'slurm_train.sh gpu yolov7 {config} {work}/slurm', '{work}/slurm/epoch_2.pth', needs='srun',
        why_not="ours, with mmdet's arguments"),
    Row('`slurm_test.sh`', 'slurm_test.sh gpu yolov7 {config} {checkpoint} --work-dir {work}/slurm_test',
        r'coco/bbox_mAP: \d', needs='srun', why_not="ours, with mmdet's arguments"),
    host('analysis_tools/analyze_logs.py', 'plot_curve {log} --keys loss --out {work}/loss.png', '{work}/loss.png',
         ' plot_curve', needs='seaborn'),
    host('analysis_tools/analyze_logs.py', 'cal_train_time {log}', 'average iter time', ' cal_train_time',
         needs='seaborn'),
    host('analysis_tools/analyze_results.py', '{config} {work}/results.pkl {work}/results --topk 2',
         '{work}/results/good/*.png', error='must include',
         why_not='wants `LoadImageFromFile` in the training pipeline; ours reads images where it warps them. Instead: '
         '`make report`'),
    host('analysis_tools/benchmark.py', '{config} --checkpoint {checkpoint} --task inference', 'fps', ' inference',
         error='NVIDIA|CUDA', needs='psutil', why_not=CUDA),
    host('analysis_tools/benchmark.py', '{config} --task dataloader --dataset-type train --max-iter 4 --num-warmup 1',
         'fps', ' dataloader', needs='psutil'),
    host('analysis_tools/benchmark.py', '{config} --task dataset --dataset-type train --max-iter 4 --num-warmup 1',
         'fps', ' dataset', needs='psutil', error="no attribute 'transforms'",
         why_not='as with each MultiImageMixDataset of mmdet, whose pipeline is a list. Instead: `--task dataloader`'),
    host('analysis_tools/browse_dataset.py', '{config} --not-show --output-dir {work}/browse', '{work}/browse/*'),
    host('analysis_tools/coco_error_analysis.py', '{work}/results.bbox.json {work}/errors --ann {annotations}',
         '{work}/errors/bbox/*.png'),
    host('analysis_tools/confusion_matrix.py', '{config} {work}/results.pkl {work}/confusion',
         '{work}/confusion/*.png'),
    host('analysis_tools/eval_metric.py', '{config} {work}/results.pkl', 'coco/bbox_mAP|bbox_mAP'),
    host('analysis_tools/fuse_results.py', '{work}/results.bbox.json {work}/results.bbox.json '
         '--annotation {annotations} --save-fusion-results --out-dir {work}/fused', '{work}/fused/*.json',
         error='models_name', why_not='reads `args.models_name`, which it does not define, on any config'),
    host('analysis_tools/get_flops.py', '{config}', 'Flops: '),
    host('model_converters/publish_model.py', '{checkpoint} {work}/published.pth', '{work}/published-*.pth'),
    host('misc/print_config.py', '{config}', 'YOLOv7SimpleHead'),
    host('misc/split_coco.py', '--data-root {work}/coco --out-dir {work}/semi --labeled-percent 50 --fold 1',
         '{work}/semi/*@50*.json'),
    host('dataset_converters/images2coco.py', '{images} {work}/classes.txt empty.json',
         '{images}/../annotations/empty.json'),
    host('dataset_converters/pascal_voc.py', '{work}/voc -o {work}/voc_coco --out-format coco',
         '{work}/voc_coco/*.json'),
    option('EMAHook', 'default_hooks.logger.interval=4', '{work}/EMAHook/epoch_2.pth'),
    option('EarlyStoppingHook', 'default_hooks.early_stopping.type=EarlyStoppingHook '
           'default_hooks.early_stopping.monitor=coco/bbox_mAP default_hooks.early_stopping.patience=1 '
           'default_hooks.early_stopping.min_delta=9 train_cfg.max_epochs=4',
           'stopped early'),
    option('TensorboardVisBackend', 'visualizer.vis_backends.0.type=TensorboardVisBackend',
           '{work}/TensorboardVisBackend/*/vis_data/events*', needs='tensorboard'),
    option('WandbVisBackend', 'visualizer.vis_backends.0.type=WandbVisBackend',
           '{work}/WandbVisBackend/*/vis_data/wandb/offline*', needs='wandb'),
    option('MLflowVisBackend', 'visualizer.vis_backends.0.type=MLflowVisBackend '
           'visualizer.vis_backends.0.tracking_uri=sqlite:///{work}/mlflow.db', '{work}/mlflow.db', needs='mlflow',
           why_not="with `tracking_uri='sqlite:///mlflow.db'`: mlflow 3.17 refuses folders, mmengine's default"),
    Row('`DetInferencer`', 'detect.py {config} {checkpoint} {images}/0.png --out-dir {work}/found',
        '{work}/found/detections.json', why_not='as `tools/detect.py` calls it'),
]  # fmt: skip


def prepare(folder: Path) -> dict:
    """Write the set and what the converters read; return the places."""
    data, work = folder / 'data', folder / 'work'
    content = write_coco(data, info={}, licenses=[])
    for category in content['categories']:
        category['supercategory'] = 'shape'  # without it coco_error_analysis fails, mmdet#6240
    annotations = data / 'annotations/all.json'
    annotations.write_text(json.dumps(content))
    write_config(folder / 'config.py', data)
    (work / 'coco/annotations').mkdir(parents=True)
    shutil.copy(annotations, work / 'coco/annotations/instances_train2017.json')
    (work / 'classes.txt').write_text('box\ndisc\n')
    voc = work / 'voc/VOC2007'
    for part in ('Annotations', 'JPEGImages', 'ImageSets/Main'):
        (voc / part).mkdir(parents=True)
    for split in ('train', 'val', 'trainval', 'test'):
        (voc / f'ImageSets/Main/{split}.txt').write_text('0\n')
    (voc / 'Annotations/0.xml').write_text(
        '<annotation><filename>0.jpg</filename><size><width>96</width><height>64</height><depth>3</depth></size>'
        '<object><name>car</name><difficult>0</difficult><bndbox><xmin>5</xmin><ymin>5</ymin><xmax>30</xmax>'
        '<ymax>40</ymax></bndbox></object></annotation>'
    )
    return {'config': folder / 'config.py', 'work': work, 'checkpoint': work / 'epoch_2.pth',
            'annotations': annotations, 'images': data / 'images'}  # fmt: skip


def attempt(row: Row, places: dict) -> tuple[str, str, bool]:
    """Run a row; return the outcome, a remark on it, and whether it is the expected one."""
    if not row.command:
        return 'not run', row.why_not, True
    if row.needs and find_spec(row.needs) is None and shutil.which(row.needs) is None:
        return 'not run', f'needs `{row.needs}`', True
    places['log'] = next(iter(sorted(places['work'].glob('*/vis_data/scalars.json'))), '')
    # Two processes under slurm, and no network for W&B.
    environment = {'WANDB_MODE': 'offline', 'PORT': free_port(), 'GPUS': '2', 'GPUS_PER_NODE': '2'}
    failing = bool(row.error) and not ('CUDA' in row.error and torch.cuda.is_available())
    try:
        output = tool(*row.command.format(**places).split(), ok=not failing, cwd=places['work'], **environment)
    except AssertionError as error:
        return '**fails**', str(error).strip().splitlines()[-1][:200], False
    proof = (row.error if failing else row.proof).format(**places)
    found = list(Path('/').glob(proof[1:])) if proof.startswith('/') else re.search(proof, output)
    if not found:
        return '**fails**', f'no {proof} in: {output[-200:]}', False
    return ('does not work here' if failing else 'works'), row.why_not, True


def main() -> int:
    versions = ', '.join(
        f'{dist.metadata["Name"]} {dist.version}'
        for name in ('torch', 'mmengine', 'mmcv-lite', 'mmcv', 'mmdet', 'onedl-mmengine', 'onedl-mmcv',
                     'onedl-mmdetection', 'numpy')
        for dist in metadata.distributions(name=name)
    )  # fmt: skip
    print(f'{versions}; Python {sys.version.split()[0]}; {"a GPU" if torch.cuda.is_available() else "no GPU"}\n')
    print('| tool | | seconds | |\n| --- | --- | --- | --- |', flush=True)
    good = True
    with tempfile.TemporaryDirectory() as folder:
        places = prepare(Path(folder))
        for row in ROWS:
            begin = time.time()
            outcome, remark, as_it_should = attempt(row, places)
            good &= as_it_should
            remark = re.sub(r'\[mmdet#(\d+)\]', rf'[mmdet#\1]({THREAD}\1)', remark)
            seconds = '' if outcome == 'not run' else f'{time.time() - begin:.0f}'
            print(f'| {row.name} | {outcome} | {seconds} | {remark} |', flush=True)
    return not good


if __name__ == '__main__':
    sys.exit(main())
