# The pipeline's stages, for the Jobs of k8s/training.
#
#     docker build -f serving/container/pipeline.Dockerfile -t googlenet-pipeline:2.20.0 .
#     docker run googlenet-pipeline:2.20.0 train --help
FROM python:3.11-slim-bookworm AS build
WORKDIR /src
COPY constraints.txt pyproject.toml README.md ./
COPY clients clients
COPY pipeline pipeline
COPY serving serving
RUN python -m venv /opt/venv \
    && PIP_CONSTRAINT=constraints.txt /opt/venv/bin/pip install --no-cache-dir ./clients . \
    && /opt/venv/bin/pip uninstall --yes pip setuptools \
    && rm -r /opt/venv/lib/python3.11/site-packages/tensorflow/include

FROM python:3.11-slim-bookworm
COPY --from=build /opt/venv /opt/venv
WORKDIR /work
ENV PATH=/opt/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 HOME=/tmp
USER 65532:65532
# Jobs end, and their exit code says how.
HEALTHCHECK NONE
ENTRYPOINT ["python", "-m", "pipeline"]
