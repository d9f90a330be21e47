"""Scripts for SLURM, for the site to edit: shards of one store as an array, and what follows."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
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

_CHAIN = """\
#!/bin/bash
# Submits an array that embeds a collection, and behind it the jobs that ask the store.
#
#   bash {name}                 again at any time: what is on file is not computed again
set -e

extract=$(sbatch --parsable <<'END_OF_JOB'
{array}END_OF_JOB
)
echo "extract: job $extract"
"""
_STEP = """\

{step}=$(sbatch --parsable --dependency=afterany:"$extract" <<'END_OF_JOB'
#!/bin/bash
#SBATCH --job-name=radprobe-{step}
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --time=12:00:00
#SBATCH --output=radprobe-{step}-%j.log
# What your site asks for:
##SBATCH --partition=cpu
##SBATCH --account=my-project

radprobe={command}

# Done in seconds where the array has left nothing; 1: some images cannot be read.
"$radprobe" extract {config} || [ $? -eq 1 ] || exit
"$radprobe" {step} {config}
END_OF_JOB
)
echo "{step}: job ${step}, behind extract"
"""


def chain_script(config: Path, tasks: int, steps: Sequence[str]) -> str:
    """Return a script that submits `array_script`, and each of some commands to follow it."""
    parts = [
        _CHAIN.format(name=config.with_suffix(".sh").name, array=array_script(config, tasks)),
    ]
    for step in steps:
        parts.append(_STEP.format(step=step, command=_command(), config=_quoted(config)))
    return "".join(parts)


def array_script(config: Path, tasks: int) -> str:
    """Return an sbatch script that extracts by a config (a path) in so many tasks."""
    return _SCRIPT.format(
        name=config.with_suffix(".sbatch").name,
        tasks=tasks,
        command=_command(),
        config=_quoted(config),
    )


def _command() -> str:
    return shlex.quote(str(Path(sys.executable).with_name("radprobe")))


def _quoted(config: Path) -> str:
    return shlex.quote(str(config.absolute()))
