# The command in a container. On a CPU:
#   docker build -t inheritune . && docker run --rm -v "$PWD:/work" inheritune demo
# On NVIDIA GPUs, with their container toolkit (`docker run --gpus all`):
#   docker build -t inheritune --build-arg TORCH_INDEX=https://pypi.org/simple .
FROM python:3.12-slim

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1

WORKDIR /src
COPY constraints.txt ./
# torch has a layer of its own: it is large, and changes least.
RUN pip install --index-url "$TORCH_INDEX" --extra-index-url https://pypi.org/simple \
        -c constraints.txt torch
COPY pyproject.toml README.md LICENSE ./
COPY recipes recipes
COPY src src
RUN pip install -c constraints.txt ".[data,eval]"

# torch.compile needs a C compiler.
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*

# Not root: what is written into a mounted directory belongs to `docker run --user`.
RUN useradd --create-home inheritune
USER inheritune
WORKDIR /work
ENTRYPOINT ["inheritune"]
CMD ["--help"]
