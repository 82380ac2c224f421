"""No policy: files, time, secrets, errors, paths, and systemd."""
