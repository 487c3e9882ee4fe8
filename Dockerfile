# The serving image: no torch, no compiler, no shell needed; runs as a number, on a read-only root file system.
#
#   docker build --target cpu  --tag inference-guard:cpu .
#   docker build --target cuda --tag inference-guard:cuda .
#
# tests/test_dockerfile.py runs the install commands of `install-cpu` in a clean environment, as they stand here.

FROM python:3.11-slim AS install
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /source
RUN python -m venv /opt/guard

FROM install AS install-cpu
COPY deploy/cpu.txt deploy/
RUN /opt/guard/bin/python -m pip install --no-deps --requirement deploy/cpu.txt
COPY pyproject.toml README.md LICENSE ./
COPY guard guard
RUN /opt/guard/bin/python -m pip install --no-deps .
RUN /opt/guard/bin/python -m pip check

FROM install AS install-cuda
COPY deploy/cuda.txt deploy/
RUN /opt/guard/bin/python -m pip install --no-deps --requirement deploy/cuda.txt
COPY pyproject.toml README.md LICENSE ./
COPY guard guard
RUN /opt/guard/bin/python -m pip install --no-deps .
RUN /opt/guard/bin/python -m pip check

FROM python:3.11-slim AS serve
# Mount the bundle at /bundle and set GUARD_UPSTREAM; every other setting has a default, and flags win over both.
ENV PATH=/opt/guard/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 GUARD_BUNDLE=/bundle
USER 65532:65532
WORKDIR /
EXPOSE 8081 8082
HEALTHCHECK --start-period=30s CMD ["guard", "probe", "127.0.0.1:8081"]
ENTRYPOINT ["guard"]
CMD ["serve"]

FROM serve AS cuda
# The CUDA libraries come from the lock; the driver comes from the host.
ENV GUARD_DEVICE=cuda NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=install-cuda /opt/guard /opt/guard

FROM serve AS cpu
COPY --from=install-cpu /opt/guard /opt/guard
