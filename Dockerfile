# The authorization service. Envoy, PostgreSQL, Redis and Ollama are images of
# their own: see docker-compose.yml.
ARG PYTHON_IMAGE=python:3.12-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
COPY requirements/service.txt /tmp/requirements.txt
# Without pip, which nothing here needs later; the base image has one of its own.
RUN python -m venv --without-pip /opt/venv \
 && pip --python /opt/venv/bin/python install --no-cache-dir --no-compile \
      --require-hashes --requirement /tmp/requirements.txt
COPY LICENSE /app/
COPY authz /app/authz
# What `authz --version` looks up: the package stands here without being installed.
ARG VERSION=0.1.0
RUN mkdir /app/authz-${VERSION}.dist-info \
 && printf 'Metadata-Version: 2.1\nName: authz\nVersion: %s\n' ${VERSION} \
      > /app/authz-${VERSION}.dist-info/METADATA
# The command, as for `docker compose exec authz authz healthcheck`.
RUN printf '#!/opt/venv/bin/python\nfrom authz.__main__ import main; main()\n' \
      > /opt/venv/bin/authz \
 && chmod 0755 /opt/venv/bin/authz
# What runs may not write bytecode. The hash in it stands for the source's time,
# which a copy may change.
RUN python -m compileall -q --invalidation-mode unchecked-hash /opt/venv/lib /app/authz

FROM ${PYTHON_IMAGE}
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="authz" \
      org.opencontainers.image.description="An Envoy external-authorization sidecar for Ollama" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="Apache-2.0"
# Envoy runs under the same uid: the folder of the sockets is open to it alone.
RUN install -d -m 0700 -o 10001 -g 10001 /run/authz
COPY --from=build /opt/venv /opt/venv
COPY --from=build /app /app
WORKDIR /app
# By PYTHONPATH the package is found from any folder, also by its own child processes.
ENV PATH=/opt/venv/bin:$PATH PYTHONPATH=/app \
    PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
ENTRYPOINT ["authz"]
CMD ["serve"]
HEALTHCHECK --interval=10s --timeout=10s --start-period=30s \
  CMD ["authz", "healthcheck"]
