"""The data path: meta JSON -> annotations -> order -> samples -> batches."""
