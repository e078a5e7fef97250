"""What a person sees of an imported model."""

from __future__ import annotations

import json
from pathlib import Path

from assets.contract import Built
from assets.report.tables import Table, write_markdown
from assets.stages.imported import SOURCE_FILE


def show(built: Built, folder: Path) -> None:
    """imported.md: where the model is from, and its files."""
    facts = json.loads((built.output / SOURCE_FILE).read_text(encoding="utf-8"))
    origin = {
        **facts["from"],
        "licence": built.config["licence"],
        "parameters": f"{built.metrics['parameters']:,.0f}",
    }
    files = [{**file, "sha256": f"`{file['sha256']}`"} for file in facts["files"]]
    rows = [{name: file[name] for name in ("path", "bytes", "sha256")} for file in files]
    write_markdown(
        folder / "imported.md",
        "\n".join(f"- {name}: {value}" for name, value in origin.items()),
        Table(rows),
    )
