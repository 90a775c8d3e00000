# vLLM with the connector, on vLLM's own image. From the repository's root:
#   docker build -f deploy/docker/vllm.Dockerfile -t ghostcacher-vllm:0.1.0 .
ARG VLLM_IMAGE=vllm/vllm-openai:v0.33.0

FROM python:3.13-slim AS build
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY ghostcacher_connector ghostcacher_connector
COPY router router
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM ${VLLM_IMAGE}
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
COPY --from=build /wheels /wheels
# The image's own vLLM and torch stay as they are; where the connector does not take that vLLM, the build ends here.
RUN python3 -m pip list --format=freeze | grep -E '^(torch|vllm)==' > /wheels/constraints.txt \
    && PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --no-cache-dir --constraint /wheels/constraints.txt \
        "$(echo /wheels/*.whl)[vllm,objects,tracing]" \
    && ghostcacher version
RUN groupadd --gid 65532 ghostcacher && useradd --uid 65532 --gid 65532 --create-home ghostcacher
ENV HOME=/home/ghostcacher USER=ghostcacher HF_HOME=/models VLLM_NO_USAGE_STATS=1
USER 65532:65532
EXPOSE 8000
ENTRYPOINT ["python3", "-m", "vllm.entrypoints.openai.api_server"]
