# The binary in a small image: `docker build -t tunnel .`, then `docker run -p 8080:8080 -v tunnel-data:/data tunnel`.

FROM rust:1-bookworm AS builder
WORKDIR /src
COPY . .
RUN cargo build --profile dist --locked --bin tunnel
# There is no shell in the final image to make the data folder with.
RUN mkdir -p /out/data && cp target/dist/tunnel /out/tunnel

# Has the C library and the CA certificates that a bridge needs, and nothing to log into.
FROM gcr.io/distroless/cc-debian12
COPY --from=builder /out/tunnel /tunnel
COPY --from=builder --chown=65532:65532 /out/data /data
USER 65532:65532
ENV TUNNEL_DATA_DIR=/data TUNNEL_STATE_DIR=/data
VOLUME /data
EXPOSE 8080 8443
# Of a relay; a bridge needs none.
HEALTHCHECK --interval=30s --timeout=15s --start-period=5s CMD ["/tunnel", "probe", "--health", "--timeout", "10s"]
ENTRYPOINT ["/tunnel"]
CMD ["relay", "--listen", "0.0.0.0:8080"]
