"""`magpie launch`: the synthesis as a chain of jobs, and the trainings as scripts for Slurm,
SkyPilot and whoever starts machines by hand."""
