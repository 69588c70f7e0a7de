# One image: the sidecar (serve, the default), the reference proxy (egress), the plain commands of the desk. The screens (review,
# web) and the loop on one machine (up, demo) are left out, -tags slim: they belong on the host, and would weigh as much again.
#
#     docker build -t supervise --build-arg VERSION=$(git describe --tags --always) .
#
# It is meant to run with a read-only root file system, all capabilities dropped and a numeric user; run it as the
# user who owns the mailbox directory (--user), or share a group with it.

FROM --platform=$BUILDPLATFORM golang:1.26-bookworm AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN --mount=type=cache,target=/go/pkg/mod go mod download
COPY . .
ARG TARGETOS
ARG TARGETARCH
ARG VERSION=dev
RUN --mount=type=cache,target=/go/pkg/mod --mount=type=cache,target=/gocache \
    GOCACHE=/gocache CGO_ENABLED=0 GOOS=${TARGETOS} GOARCH=${TARGETARCH} \
    go build -tags slim -trimpath -buildvcs=false -ldflags "-s -w -X main.version=${VERSION}" -o /out/supervise ./cmd/supervise

FROM scratch
# The proxy verifies origins with it.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /out/supervise /supervise
USER 65532:65532
EXPOSE 9100
# Of the sidecar; another command than serve wants --no-healthcheck, or its own.
HEALTHCHECK --interval=10s --timeout=3s --start-period=15s --retries=3 CMD ["/supervise", "healthcheck"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["/supervise"]
CMD ["serve"]
