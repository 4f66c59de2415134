# The authorization service. Envoy, PostgreSQL, Redis and Ollama are images of
# their own: see docker-compose.yml.
ARG PYTHON_IMAGE=python:3.12-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
COPY requirements/service.txt /tmp/requirements.txt
RUN python -m venv /opt/venv \
 && /opt/venv/bin/pip install --no-cache-dir --require-hashes -r /tmp/requirements.txt

FROM ${PYTHON_IMAGE}
# Envoy runs under the same uid: the folder of the sockets is open to it alone.
RUN install -d -m 0700 -o 10001 -g 10001 /run/authz
COPY --from=build /opt/venv /opt/venv
COPY authz /app/authz
WORKDIR /app
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
ENTRYPOINT ["python", "-m", "authz"]
CMD ["serve"]
HEALTHCHECK --interval=5s --timeout=4s --start-period=10s \
  CMD ["python", "-m", "authz", "healthcheck"]
