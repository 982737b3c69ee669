# The gateway: bytes in, bytes out. No torch, no model code, no weights.
#
#   docker build --file deploy/docker/gateway.Dockerfile --tag janus-gateway .
#
# Packages come from where pip finds them: the base image's pip configuration, or the build arguments PIP_*.

FROM python:3.11-slim-bookworm AS packages
ARG PIP_INDEX_URL
ARG PIP_FIND_LINKS
ARG SSL_CERT_FILE
WORKDIR /opt/janus/app
# Only what names versions stands before the installation, so that a change of code repeats none of it.
COPY pyproject.toml constraints.txt LICENSE ./
COPY deploy/install.sh deploy/
RUN touch README.md \
 && UV_COMPILE_BYTECODE=1 deploy/install.sh "" /opt/janus/venv "" \
 && /opt/janus/venv/bin/python -m pip uninstall --quiet --yes uv setuptools pip

FROM python:3.11-slim-bookworm
RUN groupadd --gid 10001 janus \
 && useradd --uid 10001 --gid janus --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin janus
COPY --from=packages /opt/janus/venv /opt/janus/venv
WORKDIR /opt/janus/app
COPY deploy/docker/healthcheck.py ./
COPY proto proto
COPY services/__init__.py services/
COPY services/common services/common
COPY services/exchange services/exchange
COPY services/gateway services/gateway
RUN python -m compileall -q --invalidation-mode unchecked-hash .
ENV PATH=/opt/janus/venv/bin:$PATH \
    PYTHONPATH=/opt/janus/app:/opt/janus/app/proto \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    JANUS_BIND_HOST=0.0.0.0 \
    JANUS_LOG_FORMAT=json
USER 10001:10001
EXPOSE 8000 50051
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 CMD ["python", "healthcheck.py"]
CMD ["python", "-m", "services.gateway"]
