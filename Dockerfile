# gpt-lineage with its environment, as a clone has it. Neither GPU, account nor key is needed.
#
#   docker build -t gpt-lineage .
#   docker run -it -v gpt-lineage:/home/lineage/gpt-lineage/lineage gpt-lineage             # make demo
#   docker run -it gpt-lineage make test
#   docker run -it -v gpt-lineage:/home/lineage/gpt-lineage/lineage -p 127.0.0.1:3000:3000 \
#       gpt-lineage gpt-lineage ui --host 0.0.0.0
FROM python:3.12-slim-bookworm

# Chromium is for the browser tests of `make test`
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends chromium git make \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 lineage

# by number, so that a cluster sees it is not root
USER 1000
WORKDIR /home/lineage/gpt-lineage
COPY --chown=lineage:lineage . .
# the folder of the store belongs to the user, and so does a new volume that is mounted there
RUN make .venv/ready && mkdir lineage
ENV PATH="/home/lineage/gpt-lineage/.venv/bin:$PATH" \
    LINEAGE_HOME=/home/lineage/gpt-lineage/lineage
EXPOSE 3000 5000 7860 8000
CMD ["make", "demo"]
