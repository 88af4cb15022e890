"""SCALE-Sim's arithmetic in closed form, and the TPU backend that is built on it.

A product is (m, k) x (k, n) on an array of ``rows`` x ``cols`` multipliers. The three dataflows keep one operand in the
array and stream another through it:

=========  ====================================  ============================  =============
dataflow   folds (tiles of the kept operand)     cycles per fold               streamed
=========  ====================================  ============================  =============
``ws``     ceil(k / rows) * ceil(n / cols)       2 rows + cols + m - 2         m input rows
``is``     ceil(k / rows) * ceil(m / cols)       2 rows + cols + n - 2         n outputs
``os``     ceil(m / rows) * ceil(n / cols)       rows + cols + k - 2           k products
=========  ====================================  ============================  =============

Under ``ws``: ``rows`` cycles shift the weights in, ``m`` rows stream, ``rows - 1`` and ``cols - 1`` cycles of skew.
Folds never overlap, and an edge fold costs as much as a whole one. Source: SCALE-Sim 3.0.0, whose every run without
stalls these forms equal (tests/peers/test_scale_sim.py); Samajdar et al., ISPASS 2020, describe the machine, but their
``os`` form has 2 rows where the tool has one. Memory is outside the closed form: no stalls, no prefetch, no bandwidth.

All functions broadcast; integer inputs give int64 outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, cast, get_args

import numpy as np
import numpy.typing as npt

from hwmodel.backends.base import Costs, FloatArray, Options, Workload
from hwmodel.backends.tpu import matrix_array, silicon
from hwmodel.backends.tpu.parameters import TpuParameters

Dataflow = Literal["ws", "os", "is"]
Array = npt.NDArray[Any]
