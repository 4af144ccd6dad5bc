"""Small pictures, a clip and records, so that the commands of README and docs run as they stand."""
