# The image of the relay, and (--target lab) the one of its laboratory. Builds with and without BuildKit, for any
# architecture that Rust, Debian and the base images have.
#
# The names of the base images are arguments, so that another registry can stand in.
ARG BUILD_IMAGE=rust:1.95-slim-bookworm
ARG RUNTIME_IMAGE=gcr.io/distroless/cc-debian12:nonroot

FROM ${BUILD_IMAGE} AS build
WORKDIR /build
# Dependencies in a layer of their own: they are built again only when these files change.
COPY Cargo.toml Cargo.lock ./
COPY tests/lab/Cargo.toml tests/lab/
RUN mkdir -p src tests/lab/src \
    && echo 'fn main() {}' > src/main.rs \
    && cp src/main.rs tests/lab/src/ \
    && touch src/lib.rs tests/lab/src/lib.rs \
    && cargo build --release --locked --workspace \
    && cargo clean --release --workspace
COPY src src
COPY tests/lab/src tests/lab/src
ARG REVISION=unknown
RUN ASPIA_RELAY_REVISION="${REVISION}" cargo build --release --locked --workspace

FROM ${RUNTIME_IMAGE} AS lab
COPY --from=build /build/target/release/relay-lab /usr/local/bin/relay-lab
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/relay-lab"]

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
# Everything goes to stdout, a JSON object a line. "container" tells the program that its advice is for a container.
ENV container=oci \
    ASPIA_LOG_LEVEL=0 \
    ASPIA_LOG_TO_STDOUT=1 \
    ASPIA_LOG_FORMAT=json
EXPOSE 8070
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=6s --start-period=10s --retries=3 \
    CMD ["/usr/local/bin/aspia_relay", "--healthcheck"]
ENTRYPOINT ["/usr/local/bin/aspia_relay"]
