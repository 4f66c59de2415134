"""What a secret looks like: to be found in the files, and never to be shown."""

from __future__ import annotations

import re

SECRET = re.compile(
    r"nz_[0-9A-Za-z]{49}|-----BEGIN [A-Z ]*PRIVATE KEY"
    r"|\b(?:Bearer|Basic) [\w+/=.-]{16,}|://[^/\s:@%]+:[^/\s@%]+@"
)
