# syntax=docker/dockerfile:1
# The release image: one binary, the examples, no shell, no root. The default configuration listens on loopback only, so
# bring your own:
#
#   docker build -t headgate .
#   docker run -p 8080:8080 -v ./my.yaml:/etc/headgate/headgate.yaml:ro headgate

FROM rust:1-bookworm AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends cmake nginx-light nghttp2-client openssl python3 wrk \
    && rm -rf /var/lib/apt/lists/*
RUN rustup component add llvm-tools
WORKDIR /src
COPY . .
RUN scripts/release && mkdir /runtime

# glibc, CA certificates, a user `nonroot` (65532), and nothing to run but us.
FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /src/target/dist/headgate /usr/local/bin/headgate
COPY --from=build /src/conf /etc/headgate
COPY --from=build --chown=nonroot:nonroot --chmod=700 /runtime /run/headgate
EXPOSE 8080
# The drain ends on its own; a stop timeout of the platform has to be longer than the configured one.
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/headgate"]
CMD ["run", "-c", "/etc/headgate/headgate.yaml"]
