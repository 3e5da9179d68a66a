ARG PYTHON=python:3.13-slim

FROM ${PYTHON} AS build
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY client client
COPY cluster cluster
COPY node node
RUN python -m venv /opt/holdfast \
 && /opt/holdfast/bin/pip install --no-cache-dir --disable-pip-version-check . \
 && /opt/holdfast/bin/pip uninstall --yes pip

FROM ${PYTHON}
# fixed numbers: volumes keep their owner by number, whatever the base image's next free one is
RUN groupadd --system --gid 7480 holdfast \
 && useradd --system --uid 7480 --gid holdfast --no-create-home --home-dir /data --shell /usr/sbin/nologin holdfast \
 && install --directory --owner=holdfast --group=holdfast --mode=0750 /data
COPY --from=build /opt/holdfast /opt/holdfast
ENV PATH=/opt/holdfast/bin:$PATH \
    PYTHONSAFEPATH=1 \
    PYTHONUNBUFFERED=1 \
    HOLDFAST_DATA=/data \
    HOLDFAST_API=0.0.0.0:7480 \
    HOLDFAST_PEER=0.0.0.0:7482
USER holdfast
WORKDIR /data
VOLUME /data
EXPOSE 7480 7481 7482
# alive, not ready: a node that waits for its peers is not sick
HEALTHCHECK --interval=5s --timeout=3s --start-period=20s --retries=5 \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:7480/healthz', timeout=2)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["holdfastd"]
