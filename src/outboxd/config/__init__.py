"""The configuration: one definition a setting, found, read, checked."""
