# The image of the relay, and (--target lab) the one of its laboratory. Builds with and without BuildKit, for any
# architecture that Rust, Debian and the base images have.
#
# The base images are build arguments, so that they can come from another registry.
ARG BUILD_IMAGE=rust:1.95-slim-bookworm
ARG RUNTIME_IMAGE=gcr.io/distroless/cc-debian12:nonroot

FROM ${BUILD_IMAGE} AS build
# For setcap.
# hadolint ignore=DL3008
RUN command -v setcap >/dev/null \
    || { apt-get update && apt-get install -y --no-install-recommends libcap2-bin && rm -rf /var/lib/apt/lists/*; }
WORKDIR /build
# Dependencies have a layer of their own and are rebuilt only when these files change.
COPY Cargo.toml Cargo.lock ./
COPY tests/lab/Cargo.toml tests/lab/
RUN mkdir -p src tests/lab/src \
    && echo 'fn main() {}' > src/main.rs \
    && cp src/main.rs tests/lab/src/ \
    && touch src/lib.rs tests/lab/src/lib.rs \
    && cargo build --release --locked --package aspia-relay --bin aspia_relay \
    && cargo clean --release --workspace
COPY src src
ARG REVISION=unknown
# The program may listen on ports below 1024 wherever its container has the capability for that. It is permitted, not effective
# ("ep"): with an effective one, the kernel would not start the program in a container without the capability.
RUN ASPIA_RELAY_REVISION="${REVISION}" cargo build --release --locked --package aspia-relay --bin aspia_relay \
    && setcap cap_net_bind_service=p target/release/aspia_relay

FROM ${RUNTIME_IMAGE} AS relay
ARG REVISION=unknown
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="aspia-relay" \
      org.opencontainers.image.description="A relay for the Aspia remote-desktop system" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /build/target/release/aspia_relay /usr/local/bin/aspia_relay
USER 65532:65532
# Everything goes to stdout, one JSON object per line. "container" tells the program to give advice for containers. There is no
# shell for sending a signal, so the relay notices by itself when its files change.
ENV container=oci \
    ASPIA_RELAY_WATCH_CONFIG=true \
    ASPIA_LOG_LEVEL=0 \
    ASPIA_LOG_TO_STDOUT=1 \
    ASPIA_LOG_FORMAT=json
EXPOSE 8070
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=6s --start-period=10s --retries=3 \
    CMD ["/usr/local/bin/aspia_relay", "--healthcheck"]
ENTRYPOINT ["/usr/local/bin/aspia_relay"]

# The laboratory comes after the relay: a builder without BuildKit builds every stage before the one that is asked for.
FROM build AS build-lab
COPY tests/lab/src tests/lab/src
ARG REVISION=unknown
RUN ASPIA_RELAY_REVISION="${REVISION}" cargo build --release --locked --package relay-lab

FROM ${RUNTIME_IMAGE} AS lab
COPY --from=build-lab /build/target/release/relay-lab /usr/local/bin/relay-lab
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/relay-lab"]

# The last stage is what is built where no target is named.
FROM relay
