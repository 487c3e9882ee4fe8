"""The schema of the chart's values: its own part as it stands in the file, and the settings as the code reads them.

python -m tests.deploy.chart_schema   writes the settings' part anew, after a setting was added or changed
"""

from __future__ import annotations

import json
from typing import Any

from guard.settings_schema import settings_schema
from tests.side import ROOT

FILE = ROOT / "deploy" / "helm" / "values.schema.json"
SETTINGS = "settings"  # below `definitions`


def renewed(text: str) -> str:
    """The text of the file with the settings' part as the code has it today."""
    whole: dict[str, Any] = json.loads(text)
    settings = {key: value for key, value in settings_schema().items() if not key.startswith("$")}
    whole["definitions"][SETTINGS] = settings
    return json.dumps(whole, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FILE.write_text(renewed(FILE.read_text("utf-8")), encoding="utf-8")
