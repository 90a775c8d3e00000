# SGLang with the connector, on SGLang's own image. From the repository's root:
#   docker build -f deploy/docker/sglang.Dockerfile -t ghostcacher-sglang:0.1.0 .
ARG SGLANG_IMAGE=lmsysorg/sglang:v0.5.23

FROM python:3.13-slim AS build
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY ghostcacher_connector ghostcacher_connector
COPY router router
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM ${SGLANG_IMAGE}
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
COPY --from=build /wheels /wheels
# The image's own SGLang and torch stay as they are; where the connector does not take that SGLang, the build ends here.
RUN python3 -m pip list --format=freeze | grep -E '^(torch|sglang)==' > /wheels/constraints.txt \
    && PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --no-cache-dir --constraint /wheels/constraints.txt \
        "$(echo /wheels/*.whl)[sglang,tracing]" \
    && ghostcacher version
RUN groupadd --gid 65532 ghostcacher && useradd --uid 65532 --gid 65532 --create-home ghostcacher
ENV HOME=/home/ghostcacher USER=ghostcacher HF_HOME=/models
USER 65532:65532
EXPOSE 8000
ENTRYPOINT ["python3", "-m", "sglang.launch_server"]
