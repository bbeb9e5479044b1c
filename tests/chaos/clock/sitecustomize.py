"""A machine whose clock is wrong: `time.time` is off by the seconds that the environment names."""

import os
import time

_SKEW_S = float(os.environ.get("BACKDOOR_SWEEPS_CHAOS_SKEW_S", "0"))
_time, _time_ns = time.time, time.time_ns

if _SKEW_S:
    time.time = lambda: _time() + _SKEW_S
    time.time_ns = lambda: _time_ns() + int(_SKEW_S * 1e9)
