# Images that serve (no torch) and one that trains: no compiler, no pip, no shell needed, run as a number on a read-only
# root file system. Whatever is installed is in a lock of deploy/, by its SHA-256; tests/lock.py writes them.
#
#   docker build --target cpu   --tag inference-guard:cpu .
#   docker build --target cuda  --tag inference-guard:cuda .
#   docker build --target train --tag inference-guard:train .
#
# --build-arg PYTHON=python@sha256:... fixes the base image as well. Each image lists its packages, as CycloneDX, in
# /usr/share/sbom/guard.cdx.json. tests/test_dockerfile.py runs the install commands of `install-cpu` in a clean
# environment, as they stand here.

ARG PYTHON=python:3.11-slim

FROM ${PYTHON} AS install
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /source
COPY deploy/build.txt deploy/
RUN python -m venv /opt/build
RUN /opt/build/bin/python -m pip install --no-deps --require-hashes --requirement deploy/build.txt
RUN python -m venv --without-pip /opt/guard

FROM install AS install-cpu
COPY deploy/cpu.txt deploy/last.txt deploy/
RUN /opt/build/bin/python -m pip --python /opt/guard/bin/python install --no-deps --require-hashes \
    --requirement deploy/cpu.txt
RUN /opt/build/bin/python -m pip --python /opt/guard/bin/python install --no-deps --require-hashes --force-reinstall \
    --requirement deploy/last.txt
COPY pyproject.toml README.md LICENSE ./
COPY guard guard
RUN /opt/build/bin/python -m pip wheel --no-deps --no-build-isolation --wheel-dir /opt/build/dist .
# Not in /source, where pip takes what building left behind for an installation.
RUN cd /opt/build && bin/python -m pip --python /opt/guard/bin/python install --no-deps --no-index --force-reinstall \
    dist/*.whl
RUN cd /opt/build && bin/python -m pip --python /opt/guard/bin/python check && /opt/guard/bin/guard --version

FROM install AS install-cuda
COPY deploy/cuda.txt deploy/last.txt deploy/
RUN /opt/build/bin/python -m pip --python /opt/guard/bin/python install --no-deps --require-hashes \
    --requirement deploy/cuda.txt
RUN /opt/build/bin/python -m pip --python /opt/guard/bin/python install --no-deps --require-hashes --force-reinstall \
    --requirement deploy/last.txt
COPY pyproject.toml README.md LICENSE ./
COPY guard guard
RUN /opt/build/bin/python -m pip wheel --no-deps --no-build-isolation --wheel-dir /opt/build/dist .
# Not in /source, where pip takes what building left behind for an installation.
RUN cd /opt/build && bin/python -m pip --python /opt/guard/bin/python install --no-deps --no-index --force-reinstall \
    dist/*.whl
RUN cd /opt/build && bin/python -m pip --python /opt/guard/bin/python check && /opt/guard/bin/guard --version

FROM install AS install-train
COPY deploy/train.txt deploy/last.txt deploy/
RUN /opt/build/bin/python -m pip --python /opt/guard/bin/python install --no-deps --require-hashes \
    --requirement deploy/train.txt
RUN /opt/build/bin/python -m pip --python /opt/guard/bin/python install --no-deps --require-hashes --force-reinstall \
    --requirement deploy/last.txt
COPY pyproject.toml README.md LICENSE ./
COPY guard guard
RUN /opt/build/bin/python -m pip wheel --no-deps --no-build-isolation --wheel-dir /opt/build/dist .
# Not in /source, where pip takes what building left behind for an installation.
RUN cd /opt/build && bin/python -m pip --python /opt/guard/bin/python install --no-deps --no-index --force-reinstall \
    dist/*.whl
RUN cd /opt/build && bin/python -m pip --python /opt/guard/bin/python check && /opt/guard/bin/guard --version

FROM install AS list
COPY deploy/sbom.txt deploy/
COPY pyproject.toml ./
RUN python -m venv /opt/sbom
RUN /opt/sbom/bin/python -m pip install --no-deps --require-hashes --requirement deploy/sbom.txt

FROM list AS list-cpu
COPY --from=install-cpu /opt/guard /opt/guard
RUN /opt/sbom/bin/cyclonedx-py environment --validate --output-reproducible --pyproject pyproject.toml \
    --output-file guard.cdx.json /opt/guard/bin/python

FROM list AS list-cuda
COPY --from=install-cuda /opt/guard /opt/guard
RUN /opt/sbom/bin/cyclonedx-py environment --validate --output-reproducible --pyproject pyproject.toml \
    --output-file guard.cdx.json /opt/guard/bin/python

FROM list AS list-train
COPY --from=install-train /opt/guard /opt/guard
RUN /opt/sbom/bin/cyclonedx-py environment --validate --output-reproducible --pyproject pyproject.toml \
    --output-file guard.cdx.json /opt/guard/bin/python

FROM ${PYTHON} AS run
ENV PATH=/opt/guard/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 65532:65532
WORKDIR /
ENTRYPOINT ["guard"]

FROM run AS train
# Mount the data, and a volume for --out; no home directory is there, and caches go to /tmp.
ENV HOME=/tmp MPLCONFIGDIR=/tmp/matplotlib NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=install-train /opt/guard /opt/guard
COPY --from=list-train /source/guard.cdx.json /usr/share/sbom/
CMD ["train", "--help"]

FROM run AS serve
# Mount the bundle at /bundle and set GUARD_UPSTREAM; every other setting has a default, and flags win over both.
ENV GUARD_BUNDLE=/bundle
EXPOSE 8081 8082
# Whether the guard is alive, at the address of its own settings, with TLS too; not whether its model server is ready.
HEALTHCHECK --start-period=30s CMD ["guard", "probe", "--local", "--timeout=5"]
CMD ["serve"]

FROM serve AS cuda
# The CUDA libraries come from the lock; the driver comes from the host.
ENV GUARD_DEVICE=cuda NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=install-cuda /opt/guard /opt/guard
COPY --from=list-cuda /source/guard.cdx.json /usr/share/sbom/

FROM serve AS cpu
COPY --from=install-cpu /opt/guard /opt/guard
COPY --from=list-cpu /source/guard.cdx.json /usr/share/sbom/
