# diffusion-jax on CPUs: docker build -f docker/cpu.Dockerfile -t diffusion-jax:cpu .
# docker run --rm -v $PWD/runs:/runs diffusion-jax:cpu train --config=digits --workdir=/runs/digits
# The context is the clone's root. Workdirs are in /runs and own data in /data; configs/ lies in the working folder.
FROM python:3.11.11-slim-bookworm

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1
ENV JAX_PLATFORMS=cpu

WORKDIR /src
COPY pyproject.toml setup.py MANIFEST.in README.md LICENSE constraints.txt ./
COPY configs configs
COPY diffusion_jax diffusion_jax
RUN pip install -c constraints.txt '.[audio]' && rm -rf build diffusion_jax

# A home that any user may write, for docker run --user "$(id -u)": TFDS and jax keep files there.
ENV HOME=/home/anyone
RUN mkdir -p /home/anyone /runs /data && chmod 777 /home/anyone /runs /data

WORKDIR /work
COPY configs configs
VOLUME ["/runs", "/data"]
ENTRYPOINT ["diffusion-jax"]
CMD ["--help"]
