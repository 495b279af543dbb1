# diffusion-jax on NVIDIA GPUs: docker build -f docker/gpu.Dockerfile -t diffusion-jax:gpu .
# docker run --rm --gpus=all --shm-size=8g -v $PWD/runs:/runs diffusion-jax:gpu train --config=digits --workdir=/runs/digits
# The context is the clone's root. Workdirs are in /runs and own data in /data; configs/ lies in the working folder.
FROM python:3.11.11-slim-bookworm

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1
# CUDA comes with the wheels of jax; the driver is the host's, by the NVIDIA container toolkit.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility

WORKDIR /src
COPY pyproject.toml setup.py MANIFEST.in README.md LICENSE constraints.txt ./
COPY configs configs
COPY diffusion_jax diffusion_jax
RUN pip install -c constraints.txt '.[gpu,audio]' && rm -rf build diffusion_jax

# A home that any user may write, for docker run --user "$(id -u)": TFDS and jax keep files there.
ENV HOME=/home/anyone
RUN mkdir -p /home/anyone /runs /data && chmod 777 /home/anyone /runs /data

WORKDIR /work
COPY configs configs
VOLUME ["/runs", "/data"]
ENTRYPOINT ["diffusion-jax"]
CMD ["--help"]
