"""One rank of a real training start: writes the addresses on which it listens, and a sum over all
ranks. `python listening_rank.py FOLDER`, started by the launcher.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import psutil
import torch

from gpt_model.training import engine

engine.start(engine.Execution())
total = torch.ones(1)
torch.distributed.all_reduce(total)
listening = [
    connection.laddr.ip
    for connection in psutil.Process().net_connections()
    if connection.status == psutil.CONN_LISTEN
]
outcome = {"sum": total.item(), "listening": listening}
Path(sys.argv[1], f"{os.environ['RANK']}.json").write_text(json.dumps(outcome), encoding="utf-8")
torch.distributed.barrier()
os._exit(0)
