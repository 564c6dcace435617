"""An auditor: replays what others trained, and says what comes of it."""
