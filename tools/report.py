"""Put a run into one HTML page that opens anywhere: numbers, curves, mistakes, and what the model sees.

    python tools/report.py WORK_DIR
    python tools/report.py CONFIG      its schedule, before training

A run's newest config, its logs and its best checkpoint are used, and the test split is evaluated once. The page is
WORK_DIR/report.html; that of a config is CONFIG's name with _schedule.html, in the current folder.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import installed  # noqa: F401

from rich.progress import Progress

from yolov7_simple.apis.inference import load_config, load_inferencer
from yolov7_simple.report.advice import summarize
from yolov7_simple.report.error_types import find_losses
from yolov7_simple.report.matching import evaluate
from yolov7_simple.report.report import run_page, schedule_page
from yolov7_simple.report.runs import read_run
from yolov7_simple.runtime.errors import run_tool
from yolov7_simple.runtime.files import check_writable, replacing


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('run', type=Path, help='work dir of a run, or a config')
    parser.add_argument('--checkpoint', type=Path, help='default: the best one in the work dir')
    parser.add_argument('--out', type=Path, help='the page to write')
    parser.add_argument(
        '--score-thr', type=float, default=0.3, help='lowest score of a detection that counts; default: 0.3'
    )
    parser.add_argument('--device', help='such as cpu or cuda:0; default: the best there is')
    args = parser.parse_args()
    if not 0 < args.score_thr < 1:
        parser.error(f'--score-thr {args.score_thr}: must be between 0 and 1')
    return args


def main() -> None:
    args = parse_args()
    if args.run.suffix == '.py':
        out = args.out or Path(f'{args.run.stem}_schedule.html')
        check_writable(out, overwrite=True)
        page = schedule_page(load_config(args.run), args.run.stem)
    else:
        run = read_run(args.run, args.checkpoint)
        out = args.out or args.run / 'report.html'
        check_writable(out, overwrite=True)
        cfg = load_config(run.config)
        model = load_inferencer(run.config, run.checkpoint, args.device).model
        with Progress() as progress:
            task = progress.add_task('Evaluating the test split')
            evaluated = evaluate(model, cfg, lambda done, total: progress.update(task, completed=done, total=total))
        losses = find_losses(evaluated.images, args.score_thr, len(evaluated.classes))
        page = run_page(run, cfg, model, evaluated, losses)
        print(summarize(losses))
    with replacing(out) as temporary:
        temporary.write_text(page.render(), encoding='utf-8')
    print(f'{out}: {out.stat().st_size / 1e6:.1f} MB')


if __name__ == '__main__':
    run_tool(main)
