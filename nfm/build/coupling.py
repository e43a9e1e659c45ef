"""A coupling prepared from its section into a folder, and made from that folder.

The folder holds coupling.json (kind and settings) and, by kind, potentials.safetensors, the drawn noise as raw float16
(noise.f16, shape (N, K, C, H, W) of N images and K draws), or a copy of the teacher.
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nfm.artifacts import load_tensors, read_json, save_tensors, write_json
from nfm.build.checks import check_format
from nfm.build.teacher import TrainedTeacher, load_teacher, save_teacher
from nfm.config import (
    CouplingSection,
    IndependentCoupling,
    MinibatchOTCoupling,
    SemidiscreteOTCoupling,
    TeacherCoupling,
)
from nfm.coupling.base import Coupling
from nfm.coupling.diagnostics import c2st, noise_statistics, round_trip_error
from nfm.coupling.independent import Independent
from nfm.coupling.minibatch_ot import MinibatchOT
from nfm.coupling.semidiscrete_ot import SemidiscreteOT, fit_potentials
from nfm.coupling.teacher import TeacherDraws, TeacherOnline, draw_teacher_noise
from nfm.data.shards import Split
from nfm.errors import InputError

FORMAT = "nfm-coupling-1"
