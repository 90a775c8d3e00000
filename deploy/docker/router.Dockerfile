# The router, and the endpoint picker: no engine, no shell needed, any user, read-only root. From the repository's root:
#   docker build -f deploy/docker/router.Dockerfile -t ghostcacher-router:0.1.0 .
ARG PYTHON=python:3.13-slim

FROM ${PYTHON} AS build
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY ghostcacher_connector ghostcacher_connector
COPY router router
RUN python -m venv /opt/ghostcacher && /opt/ghostcacher/bin/pip install --no-cache-dir "/source[tracing,bedrock,epp]"

FROM ${PYTHON}
COPY --from=build /opt/ghostcacher /opt/ghostcacher
ENV PATH=/opt/ghostcacher/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 GC_ROUTER_LISTEN=0.0.0.0:8000
USER 65532:65532
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["ghostcacher"]
CMD ["router"]
