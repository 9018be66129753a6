"""The benchmark: rollups beside the raw query and beside others' ways, measured side by side in one run."""
