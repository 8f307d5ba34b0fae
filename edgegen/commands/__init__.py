"""What the scripts run: one module a command."""

import os

# Before torch is imported. Where another program holds a core, threads that wait by spinning make
# a command ten times slower; alone on the machine nothing changes.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
