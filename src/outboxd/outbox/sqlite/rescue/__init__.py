"""What reads damaged files: the log, the pages, and what of them is believed."""
