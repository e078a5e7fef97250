"""Adapters: from a public data set's rows to the rows that lm_eval reads, one small function a
protocol.

Every module in this package is imported here, so that its adapters are in `registry.ADAPTERS`:
adding a protocol is adding a file. What an adapter is stands in `registry.py`.
"""

from __future__ import annotations

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
