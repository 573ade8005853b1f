# Two small images from one build: the targets `dispatcher` (the last, so the default) and
# `mock-receiver`.

FROM rust:1-slim-bookworm AS build
WORKDIR /build
# A backtrace keeps the names of its functions; their lines would make the binary four times as large.
ENV CARGO_PROFILE_RELEASE_DEBUG=false

# The dependencies, in a layer of their own that changes with the manifests only: built for empty
# packages, of which nothing is left.
COPY Cargo.toml Cargo.lock ./
COPY mock-receiver/Cargo.toml mock-receiver/
RUN mkdir src mock-receiver/src \
    && touch src/lib.rs mock-receiver/src/lib.rs \
    && echo 'fn main() {}' >src/main.rs \
    && cp src/main.rs mock-receiver/src/ \
    && cargo build --workspace --release --locked \
    && cargo clean --workspace --release --locked

COPY . .
RUN cargo build --workspace --release --locked

FROM debian:bookworm-slim AS runtime
# All that TLS needs: the authorities that the build image trusts.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
# A number, since Kubernetes cannot tell from a name that it is not root.
USER 10001:10001

FROM runtime AS mock-receiver
COPY --from=build /build/target/release/mock-receiver /usr/local/bin/
# Inside of a container everybody else is on another address.
ENV BIND=0.0.0.0
EXPOSE 8080
HEALTHCHECK --interval=5s --timeout=5s --start-period=10s CMD ["mock-receiver", "health"]
ENTRYPOINT ["mock-receiver"]

FROM runtime AS dispatcher
COPY --from=build /build/target/release/webhook-dispatcher /usr/local/bin/
# Not BIND, which would win over the PORT that a hosting platform sets.
ENV PORT=8000
EXPOSE 8000
# The start may wait half a minute for Postgres.
HEALTHCHECK --interval=5s --timeout=5s --start-period=40s CMD ["webhook-dispatcher", "health"]
ENTRYPOINT ["webhook-dispatcher"]
