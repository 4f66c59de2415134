#!/bin/sh
# Invent the secrets of the dev overlay; those that are there stay.
set -eu
umask 077
cd "$(dirname "$0")"
mkdir -p secrets
cd secrets
[ -e pepper ] && exit

random() { head -c 24 /dev/urandom | od -An -v -tx1 | tr -d ' \n'; }
url() { echo "AUTHZ_DATABASE_URL=postgresql://$1:$2@postgres/authz"; }

owner=$(random) service=$(random) manager=$(random)
printf '%s\n' "POSTGRES_PASSWORD=$owner" "SERVICE_PASSWORD=$service" "MANAGER_PASSWORD=$manager" >postgres.env
url authz "$owner" >owner.env
url authz_manager "$manager" >manager.env
{
  url authz_service "$service"
  echo AUTHZ_REDIS_URL=redis://redis:6379/0
  echo "AUTHZ_CACHE_SECRET=$(random)"
} >service.env
random >pepper
