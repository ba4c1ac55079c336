# Images of vmimport's programs, one target for each: api, worker and vmimport.
#
#   docker build --target worker --tag vmimport-worker .
#
# An image holds one static program and the certificates it trusts. There is no
# shell, and so no HEALTHCHECK: ask /healthz and /readyz from outside.

FROM --platform=$BUILDPLATFORM golang:1.26-bookworm AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
# With .git, from which the programs know their version.
COPY . .
ARG TARGETOS
ARG TARGETARCH
RUN --mount=type=cache,target=/root/.cache/go-build \
    GOOS=$TARGETOS GOARCH=$TARGETARCH make static
# A new volume takes over the owner of the directory that it is mounted on.
RUN mkdir -p -m 0750 /rootfs/srv/images /rootfs/srv/scratch

FROM scratch AS base
LABEL org.opencontainers.image.title="vmimport" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY LICENSE /
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --from=build --chown=65532:65532 /rootfs/ /
# A number, so that Kubernetes can see that it is not root.
USER 65532:65532
ENV VMIMPORT_CONFIG=/etc/vmimport/vmimport.yaml

FROM base AS api
COPY --from=build /src/bin/api /usr/local/bin/
EXPOSE 8080
ENTRYPOINT ["/usr/local/bin/api"]

FROM base AS worker
COPY --from=build /src/bin/worker /usr/local/bin/
EXPOSE 8081
ENTRYPOINT ["/usr/local/bin/worker"]

FROM base AS vmimport
COPY --from=build /src/bin/vmimport /usr/local/bin/
ENTRYPOINT ["/usr/local/bin/vmimport"]
