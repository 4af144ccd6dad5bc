"""What several test modules need: tiny models and data on disk, servers, apps."""
