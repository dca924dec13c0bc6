//! Generates the wire types into OUT_DIR: messages with prost always, gRPC
//! clients and servers with tonic behind the feature "grpc".
//! The compiler is protox, so that no `protoc` has to be installed.

#[expect(
    clippy::disallowed_methods,
    reason = "cargo tells build scripts their features by the environment alone"
)]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = [
        "object.proto",
        "node.proto",
        "shim.proto",
        "state.proto",
        "health.proto",
    ];
    println!("cargo::rerun-if-changed=v1");
    let descriptors = protox::compile(files, ["v1"])?;
    let grpc = std::env::var_os("CARGO_FEATURE_GRPC").is_some();
    tonic_prost_build::configure()
        .build_client(grpc)
        .build_server(grpc)
        // The same message has the same bytes.
        .btree_map(".hydrofoil.v1")
        // Shared by all messages that they are sent in.
        .bytes(".hydrofoil.v1.Update.changes")
        .compile_fds(descriptors)?;
    Ok(())
}
