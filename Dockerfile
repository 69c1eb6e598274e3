# The image of both programs: the operator, and the node that the operator runs as members. Nothing else is in it.
#
#   docker build -t quorate .
#
# Both are linked statically, so the image starts from nothing: no shell, no package, nothing to patch but the programs.
# `--build-arg PROGRAMS=prebuilt` with a context of programs compiled elsewhere (and ca-certificates.crt) makes the same
# image without pulling anything, given a builder that leaves out the stages it does not need (BuildKit).
ARG PROGRAMS=compiled

FROM docker.io/library/rust:1.95-bookworm AS compiled
WORKDIR /source
COPY . .
ENV RUSTFLAGS="-C target-feature=+crt-static"
# Naming the target keeps the static flag away from procedural macros, which must stay dynamic.
RUN target="$(rustc -vV | sed -n 's/^host: //p')" \
    && cargo build --release --locked --target "$target" -p quorate-operator -p quorate-node \
    && mkdir /out \
    && cp "target/$target/release/quorate-operator" "target/$target/release/quorate-node" /out/ \
    && cp /etc/ssl/certs/ca-certificates.crt /out/

FROM scratch AS prebuilt
COPY quorate-operator quorate-node ca-certificates.crt /out/

FROM ${PROGRAMS} AS programs

FROM scratch
COPY --from=programs /out/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=programs /out/quorate-operator /out/quorate-node /usr/local/bin/
ENV PATH=/usr/local/bin
USER 65532:65532
ENTRYPOINT ["quorate-operator"]
