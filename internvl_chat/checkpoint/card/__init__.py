"""The model card that a hub shows: ``README.md`` of a finished run, a merge, an export."""
