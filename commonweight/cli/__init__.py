"""The root command, which mounts each role's commands lazily."""
