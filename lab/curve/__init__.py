"""Records to curves: metrics with intervals along the ladder, controls, and `curves.json`."""

from lab.curve.assemble import SCHEMA_COLUMNS, build
from lab.curve.checks import controls
from lab.curve.document import SCHEMA, from_json, to_json

__all__ = ["SCHEMA", "SCHEMA_COLUMNS", "build", "controls", "from_json", "to_json"]
