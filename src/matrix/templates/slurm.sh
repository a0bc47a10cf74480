#!/bin/bash
# Every cell of a plan as a job array: sbatch fleet.sh
# A job that was killed runs again (--requeue), and a cell that was done does nothing. Afterwards:
#   kiln matrix collect @PLAN@ --report fleet.html
#SBATCH --job-name=kiln
#SBATCH --array=0-@LAST@
#SBATCH --cpus-per-task=@CPUS@
#SBATCH --mem=@MEMORY@M
#SBATCH --requeue
#SBATCH --output=kiln-%A-%a.log
@GPU@
exec kiln matrix run '@PLAN@' "$SLURM_ARRAY_TASK_ID"
