"""The script of an array job under SLURM: shards of one store, for the site to edit."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

_SCRIPT = """\
#!/bin/bash
# Embeds a collection by an array of tasks that share one store, each on one GPU.
#
#   sbatch {name}          submit; again at any time, for what is missing then
#   radprobe status STORE       how far it is
#
# Any number of tasks works, and it may change from one submission to the next: what a task that
# ended has left is taken over by those that run. The store and the collection must be on a disk
# that all nodes see under the same path.

#SBATCH --job-name=radprobe
#SBATCH --array=1-{tasks}
# At most 4 tasks at a time: --array=1-{tasks}%4
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
# One core feeds the network, the others read files.
#SBATCH --gpus-per-node=1
# Nodes without GPUs: drop this line.
#SBATCH --mem=16G
#SBATCH --time=12:00:00
#SBATCH --output=radprobe-%A_%a.log
#SBATCH --open-mode=append
# Preempted, or its node lost: the task is queued again and goes on.
#SBATCH --requeue
# Two minutes before its time is up a task stops by itself and is queued again (see below).
#SBATCH --signal=B:USR1@120
# What your site asks for:
##SBATCH --partition=gpu
##SBATCH --account=my-project

# What makes `radprobe` work on a node, such as: module load cuda
radprobe={command}

# In the background, so that this shell hears signals while it runs.
"$radprobe" extract {config} --shard "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_MAX" &
extract=$!

# SIGTERM makes it give back its parts and end, within a batch; SIGKILL loses the parts at work.
again=
trap 'kill -TERM "$extract"' TERM
trap 'again=1; kill -TERM "$extract"' USR1

wait "$extract"
code=$?
while kill -0 "$extract" 2>/dev/null; do # a signal ended the wait, not the task
  wait "$extract"
  code=$?
done
if [ -n "$again" ]; then
  scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID"
fi
exit "$code" # 1: done, and some images cannot be read (`radprobe failures` lists them)
"""


def array_script(config: Path, tasks: int) -> str:
    """Return an sbatch script that extracts by a config (a path) in so many tasks."""
    command = Path(sys.executable).with_name("radprobe")
    return _SCRIPT.format(
        name=config.with_suffix(".sbatch").name,
        tasks=tasks,
        command=shlex.quote(str(command)),
        config=shlex.quote(str(config.absolute())),
    )
