"""The rules, one module a subject; importing this enters them all into the list."""

from authz.envoy_check.rules import asked as asked
from authz.envoy_check.rules import bodies as bodies
from authz.envoy_check.rules import bounds as bounds
from authz.envoy_check.rules import check as check
from authz.envoy_check.rules import forwarding as forwarding
from authz.envoy_check.rules import lists as lists
from authz.envoy_check.rules import logs as logs
from authz.envoy_check.rules import replies as replies
from authz.envoy_check.rules import requests as requests
from authz.envoy_check.rules import routes as routes
from authz.envoy_check.rules import scripts as scripts
from authz.envoy_check.rules import settings as settings
from authz.envoy_check.rules import surroundings as surroundings
from authz.envoy_check.rules import times as times
