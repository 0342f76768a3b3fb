#!/usr/bin/env bash
# Ask a GPU what only a GPU answers, in order of worth, and write one table: OUT/gpu.md, a row as soon as it is known.
#   tests/manual/gpu.sh [OUT] [--minutes 25] [--only NAME ...] [--device cpu --smoke]
# A question that fails or hangs does not stop the others. Called again with the same OUT it goes on with what is left.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
export PYTHONPATH=".:tests/manual:tools:tools/benchmarks${PYTHONPATH:+:$PYTHONPATH}" OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec "$python" -W ignore tests/manual/gpu_questions.py "$@"
