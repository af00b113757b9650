# TensorFlow Serving with an init, flags from the CPU limit, and a user; mount the models at /models.
#
#     docker build -f serving/container/tensorflow-serving.Dockerfile -t googlenet-serving:2.20.0 .
#     docker run --read-only --tmpfs /tmp -v "$PWD/models:/models:ro" -p 8500:8500 -p 8501:8501 \
#       googlenet-serving:2.20.0
FROM debian:bookworm-slim AS init
# A Debian release takes old versions of a package away when it brings a fix.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends tini \
    && rm -rf /var/lib/apt/lists/*

FROM tensorflow/serving:2.20.0
COPY --from=init /usr/bin/tini-static /usr/bin/tini
COPY serving/container/serve /usr/local/bin/serve
COPY serving/config/*.config /etc/googlenet/
# int8 has no other kernels than oneDNN's.
ENV TF_ENABLE_ONEDNN_OPTS=1
USER 65532:65532
EXPOSE 8500 8501
# The image has no HTTP client, and bash can ask without one. Only an AVAILABLE version has metadata.
HEALTHCHECK --interval=5s --timeout=3s --start-period=5m CMD ["bash", "-c", \
    "exec 3<>/dev/tcp/localhost/8501 && printf 'GET /v1/models/googlenet/metadata HTTP/1.0\\r\\n\\r\\n' >&3 && read -r _ status _ <&3 && test \"$status\" = 200"]
# TensorFlow Serving has no SIGTERM handler, without which the kernel keeps the signal from PID 1.
ENTRYPOINT ["tini", "--", "serve"]
