"""Metrics of finished images. Never imports rewards: training rewards and judges share only `features`."""

# In the order of reports.
# isort: off
from tilting.metrics.judge import PocketJudge as PocketJudge
from tilting.metrics.alignment import i_gram as i_gram, t_clip as t_clip
from tilting.metrics.diversity import mean_distance as mean_distance, mean_pairwise as mean_pairwise
from tilting.metrics.frechet import fid as fid
from tilting.metrics.mmd import cmmd as cmmd

# isort: on
from tilting.metrics.declaration import METRICS as METRICS
from tilting.metrics.declaration import Metric as Metric
